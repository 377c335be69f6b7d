"""TLS to WeChat: a bad certificate is refused, and nothing is sent.

It may be expired, signed by nobody, or made out for another name.
"""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from socket import MSG_PEEK, create_server, socket

import pytest
from cryptography import x509

from tests.harness import invariants
from tests.harness.certificates import LOOPBACK, Authority
from tests.harness.processes import PATIENCE_S, House, _url, process, until

BODY = b'{"access_token":"over-tls","expires_in":7200}'
HANDSHAKE = b"\x16"


@dataclass
class Impostor:
    """A TLS server whose certificate can be changed; it notes what it heard."""

    sock: socket
    context: ssl.SSLContext
    first_bytes: list[bytes] = field(default_factory=list)
    requests: int = 0

    def met(self, connections: int) -> bool:
        return len(self.first_bytes) >= connections

    def serve(self) -> None:
        while True:
            try:
                peer, _ = self.sock.accept()
            except OSError:
                return
            with peer:
                peer.settimeout(PATIENCE_S)
                self._answer(peer)

    def _answer(self, peer: socket) -> None:
        self.first_bytes.append(peer.recv(1, MSG_PEEK))
        try:
            with self.context.wrap_socket(peer, server_side=True) as secure:
                if secure.recv(65536):
                    self.requests += 1
                    secure.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
                    )
        except OSError:
            return  # the handshake was refused


@contextmanager
def impersonating(context: ssl.SSLContext) -> Iterator[Impostor]:
    with create_server(("127.0.0.1", 0)) as sock:
        impostor = Impostor(sock, context)
        thread = threading.Thread(target=impostor.serve)
        thread.start()
        try:
            yield impostor
        finally:
            sock.shutdown(2)
            thread.join(PATIENCE_S)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_an_expired_unsigned_or_misnamed_certificate_is_refused_before_the_secret_is_sent(
    house: House,
) -> None:
    authority, here = Authority(house.home), LOOPBACK
    refused = [
        authority.context("expired.pem", here, days=-1),
        authority.context("self-signed.pem", here, trusted=False),
        authority.context("other.pem", x509.DNSName("api.weixin.qq.com.example")),
    ]
    with impersonating(refused[0]) as impostor:
        house.sandbox = f"https://127.0.0.1:{impostor.sock.getsockname()[1]}"
        house.configure(policy="min_gap = 0.1\nmax_backoff = 0.2")
        trust = {"SSL_CERT_FILE": str(house.home / "ca.pem")}
        with process(
            house.home / "daemon.log", "serve", "--config", str(house.config), **trust
        ) as daemon:
            house.daemon = _url(daemon.first_line())
            for context in refused:
                impostor.context = context
                until(partial(impostor.met, len(impostor.first_bytes) + 2), "two attempts")
                status, problem = house.get("/v1/tokens/main")
                assert (status, problem["code"]) == (503, "upstream-unavailable")
                assert "certificate" in problem["detail"]
                assert impostor.requests == 0
            impostor.context = authority.context("good.pem", here)
            assert until(lambda: house.get("/v1/tokens/main")[0] == 200, "a token")
            assert house.get("/v1/tokens/main")[1]["access_token"] == "over-tls"
        assert set(impostor.first_bytes) == {HANDSHAKE}  # never downgraded
        assert impostor.requests == 1
        assert {row["outcome"] for row in house.ledger()} <= {
            "transient",
            "minted",
            None,
        }  # nothing was sent, so nothing is lost
        assert len(house.ledger()) >= len(impostor.first_bytes)
        invariants.i6_nothing_leaks(house.home)
