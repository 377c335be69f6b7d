"""The way out to WeChat: directly, or through an HTTP proxy, and which certificates are trusted.

Everything that asks WeChat goes this way: token calls, verifications, tickets, the proxy for
clients, and the companion. Requests to https URLs pass an HTTP proxy in a tunnel (CONNECT), so the
proxy sees neither tokens nor secrets.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final

import aiohttp
from yarl import URL

from broker.core.errcodes import FailureCode
from broker.core.secret import Secret


@dataclass(frozen=True, slots=True)
class WayOut:
    """How requests leave this machine.

    `proxies` maps the scheme of a request to the URL of its proxy, which may hold a password. Hosts
    in `no_proxy` are reached directly; it is written like the variable NO_PROXY, with names of
    domains, IP addresses and networks. `ca_file` holds certificates that are trusted beside the
    system's.
    """

    proxies: Mapping[str, Secret] = field(default_factory=dict)
    no_proxy: str = ""
    ca_file: Path | None = None

    @classmethod
    def through(cls, proxy: Secret, ca_file: Path | None = None) -> "WayOut":
        """Return a way out that leads every request through one proxy."""
        return cls(dict.fromkeys(("http", "https"), proxy), "", ca_file)

    @classmethod
    def of_environment(cls, environ: Mapping[str, str], ca_file: Path | None = None) -> "WayOut":
        """Return the way out that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY describe."""
        proxies = {
            scheme: Secret(url if "://" in url else f"http://{url}")
            for scheme in ("http", "https")
            if (url := _either(environ, f"{scheme}_proxy") or _either(environ, "all_proxy"))
        }
        return cls(proxies, _either(environ, "no_proxy"), ca_file)

    def proxy_for(self, url: URL) -> URL | None:
        """Return the URL of the proxy that a request has to go through, None for a direct one."""
        proxy = self.proxies.get(url.scheme)
        if proxy is None or self._is_direct(url):
            return None
        return URL(proxy.reveal())

    def _is_direct(self, url: URL) -> bool:
        host, port = url.host or "", url.port
        for entry in self.no_proxy.lower().replace(",", " ").split():
            name, colon, its_port = entry.rpartition(":")
            if colon and its_port.isdecimal() and ":" not in name:
                if int(its_port) != port:
                    continue
                entry = name  # noqa: PLW2901 -- the rest of it
            if entry == "*" or _is_within(host, entry.lstrip("*.")):
                return True
        return False

    def tls(self) -> ssl.SSLContext:
        """Return a client's TLS settings. Raises OSError or ssl.SSLError for a bad ca_file."""
        context = ssl.create_default_context()
        if self.ca_file is not None:
            context.load_verify_locations(self.ca_file)
        return context


DIRECT: Final = WayOut()


class OutgoingSession:
    """A client session whose every request goes the way out and follows no redirect."""

    def __init__(self, session: aiohttp.ClientSession, way_out: WayOut = DIRECT) -> None:
        self._session = session
        self._way_out = way_out

    def request(self, method: str, url: URL, **options: Any) -> Any:
        """Return the context manager of a request; `options` are those of aiohttp's session."""
        proxy = self._way_out.proxy_for(url)
        return self._session.request(method, url, proxy=proxy, allow_redirects=False, **options)


def _is_within(host: str, domain: str) -> bool:
    """Return True if a host is of that domain, or its IP address is in that network."""
    try:
        return ip_address(host) in ip_network(domain.strip("[]"), strict=False)
    except ValueError:
        return host == domain or host.endswith(f".{domain}")


def _either(environ: Mapping[str, str], name: str) -> str:
    """Return a variable that is written in small letters or in capitals; small letters win."""
    return (environ.get(name) or environ.get(name.upper(), "")).strip()


def under(base: URL, path: str) -> URL:
    """Return the URL of a path below `base`, which may have a path of its own."""
    return base.with_path(base.path.rstrip("/") + path)


# --- what went wrong ------------------------------------------------------------------------------

# What only a proxy can have caused, whoever was asked.
PROXY_ERRORS: Final = (aiohttp.ClientHttpProxyError, aiohttp.ClientProxyConnectionError)


def is_of_proxy(error: Exception, *, in_tunnel: bool) -> bool:
    """Return True if the proxy failed, not WeChat; WeChat has not been asked then.

    `in_tunnel`: the request was to go through a proxy, and has not been sent yet. What fails then
    is the proxy, unless the tunnel leads to somebody with the wrong certificate.
    """
    if isinstance(error, PROXY_ERRORS):
        return True
    others = TimeoutError | aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError
    return in_tunnel and isinstance(error, aiohttp.ClientError) and not isinstance(error, others)


def failure_of_call(
    error: Exception, timeout_s: float, *, in_tunnel: bool
) -> tuple[FailureCode, dict[str, str]]:
    """Return why a request failed as a code and its facts, none of which is the error's own text.

    That text holds the URL, and the URL a secret. See :func:`is_of_proxy` for `in_tunnel`.
    """
    if is_of_proxy(error, in_tunnel=in_tunnel):
        return _failure_of_proxy(error)
    match error:
        case TimeoutError():
            return FailureCode.NO_ANSWER, {"seconds": f"{timeout_s:g}"}
        case aiohttp.ClientConnectorCertificateError() | ssl.SSLError():
            return FailureCode.CERTIFICATE, {}
        case aiohttp.ClientSSLError():
            return FailureCode.TLS, {}
        case aiohttp.ClientConnectorDNSError():
            return FailureCode.NAME, {}
        case aiohttp.ClientConnectorError():
            return FailureCode.CONNECT, {}
        case (
            aiohttp.ServerDisconnectedError()
            | aiohttp.ClientOSError()
            | aiohttp.ClientPayloadError()
        ):
            return FailureCode.CONNECTION_BROKE, {}
        case _:
            return FailureCode.NOT_HTTP, {"error": type(error).__name__}


def _failure_of_proxy(error: Exception) -> tuple[FailureCode, dict[str, str]]:
    match error:
        case aiohttp.ClientHttpProxyError(status=HTTPStatus.PROXY_AUTHENTICATION_REQUIRED):
            return FailureCode.PROXY_PASSWORD, {}
        case aiohttp.ClientHttpProxyError():
            return FailureCode.PROXY_REFUSED, {"status": str(error.status)}
        case aiohttp.ClientConnectorDNSError():
            return FailureCode.PROXY_NAME, {}
        case aiohttp.ClientProxyConnectionError():
            return FailureCode.PROXY_UNREACHABLE, {}
        case aiohttp.ClientConnectionError() | ssl.SSLError():
            # It hung up, or answered with a page of its own where TLS should begin.
            return FailureCode.PROXY_TUNNEL, {}
        case _:
            return FailureCode.PROXY_NOT_HTTP, {}
