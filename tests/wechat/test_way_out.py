"""The way out: an HTTP proxy with and without a password, a relay with a path, one more root."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from broker.core.secret import Secret
from broker.http.way_out import WayOut, under
from tests.harness import invariants
from tests.harness.certificates import LOOPBACK, Authority
from tests.harness.processes import House, _url, ask, process, run, until
from tests.harness.ways import (
    PASSWORD,
    PROXYS_ADDRESS,
    ConnectProxy,
    WeChatRelay,
    connect_proxy,
    in_thread,
    tinyproxy,
    wechat_relay,
)

PROXIES = ["ours", pytest.param("tinyproxy", marks=pytest.mark.needs("tinyproxy"))]
HTML = b"<html>This site is blocked</html>"


@contextmanager
def proxying(kind: str, home: Path, password: str = "") -> Iterator[ConnectProxy]:
    with (
        tinyproxy(home, password)
        if kind == "tinyproxy"
        else in_thread(connect_proxy(password)) as proxy
    ):
        yield proxy


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    with house.sandboxed():
        yield house


@pytest.fixture
def relay(house: House) -> Iterator[WeChatRelay]:
    tls = Authority(house.home).context("relay.pem", LOOPBACK)
    with in_thread(wechat_relay(house.sandbox, tls)) as relay:
        yield relay


def configure(house: House, relay: WeChatRelay, wechat: str, more: str = "") -> None:
    """Write a configuration whose [wechat] leads to the relay."""
    house.configure(policy="min_gap = 0.1\nmax_backoff = 0.3", more=more)
    text = house.config.read_text()
    base = f'api_base = "{relay.base}"\nca_file = "./ca.pem"\n{wechat}'
    house.config.write_text(text.replace(f'api_base = "{house.sandbox}"', base))


def proxy_file(house: House, url: str) -> str:
    """Write a proxy's URL to a file, and return the key that names it."""
    file = house.home / "proxy.url"
    file.write_text(url)
    file.chmod(0o600)
    return 'proxy_file = "./proxy.url"'


# --- everything goes out there --------------------------------------------------------------------


@pytest.mark.parametrize("kind", PROXIES)
@pytest.mark.parametrize("password", ["", PASSWORD], ids=["open", "password"])
def test_token_verification_ticket_proxied_calls_and_the_companion_go_through_the_proxy(
    house: House, relay: WeChatRelay, kind: str, password: str
) -> None:
    with proxying(kind, house.home, password) as proxy, ExitStack() as stack:
        key = proxy_file(house, proxy.url_with_password) if password else f'proxy = "{proxy.url}"'
        companion = '[avatars]\nlisten = "127.0.0.1:0"\nbroker = "unix:{}/broker.sock"\n'
        more = "[proxy]\nenabled = true\n" + companion.format(house.home)
        configure(house, relay, key, more)
        daemon = stack.enter_context(house.serving())
        until(lambda: house.get("/readyz")[0] == 200, "ready")
        version = house.get("/v1/tokens/main")[1]["version"]
        assert house.post("/v1/tokens/main/report", {"version": version})[0] == 200
        assert house.get("/v1/tickets/main/jsapi")[0] == 200
        me = {"X-Token-Broker-App": "main"}
        assert "openid" in str(house.get("/cgi-bin/user/get", **me)[1])
        login = {"kind": "web", "code": "nobody-has-this"}
        assert house.post("/v1/logins/main", login)[1]["errcode"] == 40029
        assert house.get("/sns/auth?access_token=a&openid=o", **me)[0] == 200
        avatars = stack.enter_context(
            process(house.home / "avatars.log", "avatars", "--config", str(house.config))
        )
        url = _url(avatars.first_line())
        assert len(ask("GET", f"{url}/avatars?limit=3")[1]) == 3
        assert daemon.end() == 0
    assert {"/weixin/sns/oauth2/access_token", "/weixin/sns/auth"} <= {it for it, _ in relay.asked}
    paths = [path.removeprefix("/weixin/cgi-bin/") for path, _ in relay.asked]
    assert paths[0] == "token"
    assert {"get_api_domain_ip", "ticket/getticket", "user/get", "user/info/batchget"} <= set(paths)
    assert relay.peers == {PROXYS_ADDRESS}
    invariants.i6_nothing_leaks(house.home)
    for log in ("daemon.log", "avatars.log"):
        assert PASSWORD not in (house.home / log).read_text()


def test_the_environment_names_the_proxy_and_who_needs_none(
    house: House, relay: WeChatRelay
) -> None:
    configure(house, relay, 'proxy = "environment"')
    with in_thread(connect_proxy(PASSWORD)) as proxy:
        for number, (excepted, peer) in enumerate(
            (("", PROXYS_ADDRESS), ("127.0.0.1", "127.0.0.1"))
        ):
            house.store.unlink(missing_ok=True)
            relay.asked.clear()
            environ = {"HTTPS_PROXY": proxy.url_with_password, "NO_PROXY": excepted}
            with house.serving(**environ) as daemon:
                until(lambda: house.get("/readyz")[0] == 200, f"ready {number}")
                assert daemon.end() == 0
            assert relay.peers == {peer}
    assert PASSWORD not in (house.home / "daemon.log").read_text()


def test_a_request_for_plain_http_goes_to_the_proxy_whole(house: House) -> None:
    """Tinyproxy passes it on; ours makes tunnels only, and says so."""
    house.configure()
    text = house.config.read_text()
    with in_thread(connect_proxy()) as proxy:
        house.config.write_text(text.replace("timeout = 5", f'timeout = 5\nproxy = "{proxy.url}"'))
        with house.serving():
            until(lambda: last_error(house), "the first call has failed")
            assert last_error(house)["reason"] == "HTTP 405"
    assert house.calls() == []


# --- what goes wrong there ------------------------------------------------------------------------


def last_error(house: House) -> Any:
    return house.get("/v1/status")[1]["apps"][0]["last_error"]


SAYS: dict[str, tuple[bytes, str]] = {
    "refuses": (
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%b" % (len(HTML), HTML),
        "the proxy on the way out refused the connection (HTTP 403)",
    ),
    "is-broken": (
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
        "the proxy on the way out refused the connection (HTTP 502)",
    ),
    "wants-a-password": (
        b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
        "the proxy on the way out wants another user and password (HTTP 407)",
    ),
    "answers-html": (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%b"
        % (len(HTML), HTML),
        "the proxy on the way out makes no tunnel",
    ),
    "hangs-up": (
        b"HTTP",
        "the proxy on the way out makes no tunnel",
    ),
    "answers-without-http": (HTML, "the proxy on the way out does not speak HTTP"),
}


@pytest.mark.parametrize("how", SAYS)
def test_a_proxy_that_gives_no_way_out_is_told_apart_from_wechat(
    house: House, relay: WeChatRelay, how: str
) -> None:
    answer, reason = SAYS[how]
    with in_thread(connect_proxy(answer=answer)) as proxy:
        configure(house, relay, f'proxy = "{proxy.url}"', "[proxy]\nenabled = true\n")
        with house.serving():
            until(lambda: last_error(house), "the first call has failed")
            error = last_error(house)
            assert (error["class"], error["reason"]) == ("proxy", reason)
            assert "WeChat was not asked" in error["advice"]
            status, problem = house.get("/v1/tokens/main")
            assert (status, problem["code"]) == (503, "upstream-unavailable")
            assert reason in problem["detail"]
            assert reason in run("status", "--config", str(house.config)).stdout
    assert relay.asked == []
    assert {row["outcome"] for row in house.ledger()} <= {"proxy", None}  # nothing was minted


def test_a_proxy_that_is_not_there_or_has_no_name_is_named(
    house: House, relay: WeChatRelay
) -> None:
    with in_thread(connect_proxy()) as proxy:
        gone = proxy.url
    for url, reason in (
        (gone, "the proxy on the way out cannot be reached"),
        ("http://nowhere.invalid:1", "the name of the proxy on the way out does not resolve"),
    ):
        configure(house, relay, f'proxy = "{url}"')
        with house.serving():
            until(lambda: last_error(house), "the first call has failed")
            assert last_error(house)["reason"] == reason
        house.store.unlink()


def test_the_wrong_password_is_no_way_out_and_the_cure_works(
    house: House, relay: WeChatRelay
) -> None:
    with in_thread(connect_proxy(PASSWORD)) as proxy:
        key = proxy_file(house, proxy.url_with_password.replace(PASSWORD, "wrong"))
        configure(house, relay, key)
        with house.serving():
            until(lambda: last_error(house), "the first call has failed")
            assert "(HTTP 407)" in last_error(house)["reason"]
        proxy_file(house, proxy.url_with_password)
        with house.serving():
            until(lambda: house.get("/readyz")[0] == 200, "ready")


def test_without_the_ca_file_the_relay_is_not_trusted(house: House, relay: WeChatRelay) -> None:
    configure(house, relay, "")
    house.config.write_text(house.config.read_text().replace('ca_file = "./ca.pem"\n', ""))
    with house.serving():
        until(lambda: last_error(house), "the first call has failed")
        assert last_error(house)["reason"] == "the TLS certificate is not one we trust"
    assert relay.asked == []


# --- in the small ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "url", "proxied"),
    [
        ({}, "https://api.weixin.qq.com/", False),
        ({"https_proxy": "http://p:1"}, "https://api.weixin.qq.com/", True),
        ({"HTTPS_PROXY": "p:1"}, "https://api.weixin.qq.com/", True),
        ({"HTTP_PROXY": "http://p:1"}, "https://api.weixin.qq.com/", False),
        ({"ALL_PROXY": "http://p:1"}, "https://api.weixin.qq.com/", True),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "*"}, "https://api.weixin.qq.com/", False),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "qq.com"}, "https://api.weixin.qq.com/", False),
        ({"ALL_PROXY": "http://p:1", "no_proxy": ".QQ.com, x"}, "https://a.qq.com/", False),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "q.com"}, "https://api.weixin.qq.com/", True),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "qq.com:80"}, "https://a.qq.com/", True),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "qq.com:443"}, "https://a.qq.com/", False),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "http://10.1.2.3/", False),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "fd00::/8"}, "http://[fd00::1]/", False),
    ],
)
def test_the_environment_is_read_as_others_read_it(
    environ: dict[str, str],
    url: str,
    proxied: bool,  # noqa: FBT001
) -> None:
    proxy = WayOut.of_environment(environ).proxy_for(URL(url))
    assert proxy == (URL("http://p:1") if proxied else None)


def test_paths_are_appended_to_a_base_with_a_path() -> None:
    assert str(under(URL("https://r.example/weixin"), "/cgi-bin/token")) == (
        "https://r.example/weixin/cgi-bin/token"
    )
    assert str(under(URL("https://r.example"), "/x")) == "https://r.example/x"


def test_a_way_out_prints_without_its_password() -> None:
    assert PASSWORD not in repr(WayOut.through(Secret(f"http://me:{PASSWORD}@p:1")))
