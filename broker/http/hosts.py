"""The Host check: a service on loopback answers to its own names, and to no other name.

A web page can make a name of its own resolve to this machine (DNS rebinding) and then read the
answers. Its requests carry that name in `Host`, so a name that is not one of ours is refused before
anything else is looked at. An IP address needs no check: a page that was loaded from an address
cannot make that address point elsewhere.
"""

import re
from collections.abc import Collection, Iterable
from ipaddress import ip_address
from typing import Final

from aiohttp import hdrs, web

LOOPBACK_NAMES: Final = frozenset({"localhost", "ip6-localhost", "ip6-loopback"})
_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]@/?#\\\s]+))(?::[0-9]{1,5})?")


class HostCheck:
    """Knows the names a service answers to: loopback's, those it is given, and every IP address."""

    def __init__(self, hosts: Iterable[str] = ()) -> None:
        self._hosts = LOOPBACK_NAMES | {host.strip("[]").lower() for host in hosts if host}

    def is_ours(self, request: web.Request, welcome: Collection[str] = ()) -> bool:
        """Return True if the request has exactly one Host header and it names this service.

        `welcome` are further names, for this request only.
        """
        given = request.headers.getall(hdrs.HOST, [])
        if len(given) != 1:
            return False
        name = host_name(given[0])
        return self.knows(name) or name in welcome

    def knows(self, name: str) -> bool:
        """Return True if a name, without its port, is one of ours or an IP address."""
        return name in self._hosts or is_ip_address(name)


def host_name(host: str) -> str:
    """Return the name in a Host header, in lower case and without its port; empty if malformed."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else ""


def is_ip_address(name: str) -> bool:
    """Return True if the name is an IPv4 or IPv6 address in its usual notation."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
