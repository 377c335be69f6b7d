"""Fuzz of the proxied routes of a real daemon.

Whatever is asked, what reaches WeChat is plain, and bears our token once.

The readers of a URL, a header or a length do not agree. So what arrives is looked at as the most
generous of them would take it, by rules of this file's own: those of broker/web/proxy/paths.py
would have the same blind spots.
"""

import asyncio
import contextlib
import re
import socket
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote, unquote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.harness.crashpoints import ForkedDaemon, ForkServer
from tests.harness.doubles import APPID, CANARY
from tests.harness.fuzzing import BOUNDED, connected, mostly, statuses, tell
from tests.harness.processes import until
from tests.harness.proxy_harness import Hostile, Seen, says

pytestmark = pytest.mark.soak

KEY = f"{CANARY}-key-of-the-service"
TOKEN = f"{CANARY}-real/+=&%-token"  # opaque: it may have in it what URLs are made of
MARK = "X-Fuzzed"
PREFIXES = ("/cgi-bin/", "/wxa/", "/customservice/", "/card/", "/datacube/")
PATHS_OF_USERS = ("/sns/oauth2/refresh_token", "/sns/userinfo", "/sns/auth")
TOKEN_PATHS = (
    "/cgi-bin/token",
    "/cgi-bin/stable_token",
    "/cgi-bin/gettoken",
    "/cgi-bin/ticket/getticket",
)
LONGEST_WAIT_S = 2.0  # for an answer to what may never have been a whole request

# --- a daemon between -----------------------------------------------------------------------------


async def quoting(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with the URL in a header, as a redirect does."""
    await says({"total": 3}, f"Location: {seen.target}")(seen, reader, writer)


@dataclass
class Passage:
    """Sends bytes to the daemon.

    What of them reaches WeChat stays in `wechat.seen` until it was looked at.
    """

    house: ForkedDaemon
    wechat: Hostile
    handle: str
    tries: int = 0
    reached: int = 0
    statuses: Counter[int] = field(default_factory=Counter)

    def says(self, raw: bytes, *, by_socket: bool) -> bytes:
        """What comes back until the daemon closes, or hears that we say no more."""
        answer = b""
        with self._connected(by_socket=by_socket) as sock, contextlib.suppress(ConnectionError):
            sock.sendall(raw)
            sock.settimeout(LONGEST_WAIT_S)
            with contextlib.suppress(TimeoutError):
                while more := sock.recv(65536):
                    answer += more
                return self._counted(answer)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(20)
            while more := sock.recv(65536):
                answer += more
        return self._counted(answer)

    def arrived(self) -> list[Seen]:
        """What WeChat was sent for others since the last time.

        What the daemon asked for itself is checked and left out.
        """
        seen, self.wechat.seen = self.wechat.seen, []
        for own in seen:
            if not own.all(MARK):
                path, _, query = own.target.partition("?")
                assert path in {"/cgi-bin/get_api_domain_ip", "/cgi-bin/ticket/getticket"}, own
                assert tokens_in(query) == [TOKEN]
        passed = [one for one in seen if one.all(MARK)]
        self.reached += len(passed)
        return passed

    def _connected(self, *, by_socket: bool) -> socket.socket:
        if not by_socket:
            return connected(int(self.house.daemon.rpartition(":")[2]))
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.house.home / "broker.sock"))
        return sock

    def _counted(self, answer: bytes) -> bytes:
        self.tries += 1
        self.statuses.update(statuses(answer) or [0])
        return answer


@contextlib.contextmanager
def recording() -> Iterator[Hostile]:
    """A WeChat in a loop of its own, on a thread."""
    wechat, loop = Hostile(otherwise=quoting), asyncio.new_event_loop()
    wechat.answers["/cgi-bin/token"] = says({"access_token": TOKEN, "expires_in": 7200})
    wechat.answers["/cgi-bin/get_api_domain_ip"] = says({"ip_list": ["203.0.113.7"]})
    wechat.answers["/cgi-bin/refused"] = says(wechat.refusal)
    began, ended = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with wechat.serving():
            began.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert began.wait(20)
        yield wechat
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def passage(tmp_path_factory: pytest.TempPathFactory, forks: ForkServer) -> Iterator[Passage]:
    """One for all examples: keys and handles over TCP, no key by the Unix socket.

    At the end its log holds nothing of it.
    """
    house = ForkedDaemon(tmp_path_factory.mktemp("proxied"), fork_server=forks)
    key = house.home / "service.key"
    key.write_text(KEY)
    key.chmod(0o600)
    more = "[compat]\nenabled = true\n[proxy]\nenabled = true\nrate = 1e6\nburst = 1000000\n"
    more += f'[clients.service]\nkey_file = "{key}"\nscopes = ["proxy"]\n'
    with recording() as wechat:
        house.sandbox = f"http://127.0.0.1:{wechat.port}"
        house.configure(more=more)
        with house.living():
            until(lambda: house.get("/readyz")[0] == 200, "ready")
            asked = f"/cgi-bin/token?grant_type=client_credential&appid={APPID}&secret={KEY}"
            passage = Passage(house, wechat, house.get(asked)[1]["access_token"])
            wechat.seen.clear()
            yield passage
            assert passage.arrived() == []
            assert house.get("/livez")[0] == 200
    log = (house.home / "daemon.log").read_text()
    assert not any(
        word in log
        for word in (
            CANARY,
            passage.handle,
            "crashed",
            "Traceback",
            "Task exception",
            "never retrieved",
        )
    )
    tell(
        "proxied requests",
        f"{passage.tries} tries, {passage.reached} passed on;",
        dict(passage.statuses),
    )
    assert passage.reached > passage.tries / 100, "what never gets through proves nothing"


# --- what is asked --------------------------------------------------------------------------------

HANDLE = b"<handle>"  # put in when it is known
GOOD_PATHS = [
    b"/cgi-bin/user/get",
    b"/wxa/getwxacode",
    b"/card/create",
    b"/cgi-bin/refused",
    b"/cgi-bin/user/token",
]
OTHER_PATHS = [
    b"/sns/userinfo",
    b"/other/x",
    b"/cgi-bin/",
    b"/",
    b"*",
    b"",
    b"cgi-bin/user/get",
    b"/livez/../cgi-bin/user/get",
]
SLASHES = [
    *rb"// /./ /x/../ /%2e%2e/ /.%2e/x/ /..;/ /;/ %2f %2F %252f \ %5c".split(),
    b"\xe2\x88\x95",
]
SCRAPS = [
    b"%00", b"\x00", b"%20", b" ", b"\t", b"%09", b"%0a", b"%0d%0a", b".", b";", b";x=1", b"%3b",
    b"%", b"%zz", b"%u0074", b"+", b"#", b"%23", b"%3f", b"@", b":", b"*", b"~", b"\xff", b"%ff",
    b"\xc3\xa9", b"%c3%a9", "ｔ".encode(), b"%ef%bd%94", b"a" * 9000,
]  # fmt: skip
BEFORE = [
    b"http://api.weixin.qq.com", b"https://localhost", b"http://localhost:1", b"//", b"///",
    b"//api.weixin.qq.com", b"/\\", b"\\", b"/wxa/..", b"/cgi-bin/..", b"/wxa/%2e%2e", b"/.",
    b"/v1/..", b"@127.0.0.1", b"http:", b"/%2f", b"/;", b"\xef\xbb\xbf",
]  # fmt: skip
BEHIND = rb"/ // /x /. /.. /x/.. . .json ;x %2f %00 %20 %3fa=1 #x \ /%2e".split()


@st.composite
def paths(draw: st.DrawFn) -> bytes:
    """A path in a spelling that somebody might take for the same path.

    It is one that goes through, one that never may, or another.
    """
    path = draw(
        st.sampled_from(
            [*(known.encode() for known in TOKEN_PATHS)] * 4 + GOOD_PATHS * 2 + OTHER_PATHS
        )
    )
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3, 0]))):
        at = max(
            0, len(path) - draw(st.integers(1, 12))
        )  # the last word is what is to be disguised
        here = path[at : at + 1]
        how = draw(
            st.sampled_from(
                ["escape", "escape twice", "case", "slash", "scrap", "before", "behind"]
            )
        )
        if how == "slash":
            places = [n for n, byte in enumerate(path) if byte == ord("/")]
            at = draw(st.sampled_from(places)) if places else 0
            path = path[:at] + draw(st.sampled_from(SLASHES)) + path[at + 1 :]
        elif how in {"before", "behind"}:
            path = (
                draw(st.sampled_from(BEFORE)) + path
                if how == "before"
                else path + draw(st.sampled_from(BEHIND))
            )
        elif how == "scrap":
            path = path[:at] + draw(st.sampled_from(SCRAPS) | st.binary(max_size=3)) + path[at:]
        else:
            other = {
                "escape": here and b"%%%02x" % here[0],
                "escape twice": here and b"%%25%02X" % here[0],
            }
            path = path[:at] + other.get(how, here.swapcase()) + path[at + 1 :]
    return path


ODD_NAMES = rb"""
    access%5Ftoken access%5ftoken %61ccess_token access%255Ftoken ACCESS_TOKEN Access_Token
    accessToken access_token[] access_token%5b0%5d access_token%00 access.token access+token
    access%20token +access_token %20access_token access_token+ access-token amp;access_token
""".split()
NAMES = mostly(b"access_token", st.sampled_from([*ODD_NAMES, b"access_token\x00"]))
VALUES = st.sampled_from([HANDLE, HANDLE, TOKEN.encode(), KEY.encode(), b"", b"x", b"%", b"\xff"])
OTHER_PARTS = rb"""
    a=1 next_openid= lang=zh_CN = =1 a a=%C3%A4 a=% a=b=c a=# a=?b xaccess_token=1
    component_access_token=2 a=%26access_token%3Dx
""".split()
OTHER_PARTS += [b"", b"a=\xff", b"a=\x00", b"a=\r", b"a= b", b"x" * 9000]
PARTS = (
    st.sampled_from(OTHER_PARTS)
    | st.tuples(NAMES, VALUES).map(b"=".join)
    | NAMES
    | st.binary(max_size=4)
)
JOINTS = mostly(b"&", st.sampled_from([*b"; && &; &amp; ? , &?".split(), b"\n"]))


@st.composite
def queries(draw: st.DrawFn) -> bytes:
    """Tokens in their place and in others, once or more, between other parameters."""
    query = b""
    for part in draw(st.lists(PARTS, max_size=4)):
        query += (draw(JOINTS) if query else b"?") + part
    return query


SECRET = KEY.encode()
BEARER = b"Authorization: Bearer " + SECRET
PROOFS = st.sampled_from(
    [[BEARER], [BEARER], [b"X-Token-Broker: 1"], [b"X-Token-Broker: 1", BEARER], []]
)
ODD_HEADERS = [
    BEARER, b"authorization: bearer  " + SECRET, b"Authorization: Bearer " + HANDLE,
    b"Authorization : Bearer " + SECRET, b"Authorization:\tBearer " + SECRET,
    b"Proxy-Authorization: Bearer " + SECRET, b"Cookie: access_token=" + SECRET,
    b"Cookie: access_token=" + HANDLE, b"X-Token-Broker-App: main",
    b"X-Token-Broker-App: " + APPID.encode(), b"X-Token-Broker-App: other", b"X-Token-Broker: 1",
    b"X-Token-Broker-Key: " + SECRET, b"X_Token_Broker: " + SECRET, b"Connection: authorization",
    b"Connection: x-token-broker, content-length, host", b"Connection: upgrade", b"Upgrade: h2c",
    b"X-Original-URL: /cgi-bin/token", b"X-Rewrite-URL: /cgi-bin/token",
    b"X_Original_URL: /cgi-bin/token", b"x_rewrite_url: /cgi-bin/token",
    b"X-HTTP-Method-Override: PUT", b"X_HTTP_Method_Override: PUT", b"X-Method-Override: PUT",
    b"Host: api.weixin.qq.com", b"Content-Encoding: gzip", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: xchunked", b"Transfer_Encoding: chunked", b"Content_Length: 3",
    b"Content-Length: 3", b"Content-Length: 0", b"Content-Length: +3", b"Expect: 100-continue",
    b"Expect: x", b"Range: bytes=0-", b"TE: trailers", b"Trailer: " + MARK.encode(), b"A: \xff",
    b"A: \x00", b"A: " + b"x" * 9000, b"\xff: 1", b": 1", b"Accept-Encoding: br, gzip",
    b"Content-Type: \x80", b"Keep-Alive: timeout=5", b"A:\r\n b", b"Origin: null", b"Via: 1.1 x",
    b"If-None-Match: *", b"User-Agent:", b"Accept: */*", b"Content-Type: application/json",
]  # fmt: skip
ODD_METHODS = [
    *b"POST PUT PATCH DELETE HEAD OPTIONS TRACE CONNECT get M-SEARCH".split(),
    b"G\xcbT",
    b"x" * 300,
    b"",
]
SMUGGLED = b"GET /cgi-bin/token?a=1 HTTP/1.1\r\nHost: localhost\r\n%b: 1\r\n%b\r\n\r\n" % (
    MARK.encode(),
    BEARER,
)
BODIES = st.sampled_from(
    [b"{}", b"a=1", b"0\r\n\r\n", SMUGGLED, b"0\r\n\r\n" + SMUGGLED, b"\x00" * 99, b"x" * 70_000]
) | st.binary(max_size=50)


ODD_VERSIONS = b"HTTP/1.0 HTTP/1.2 HTTP/2 HTTP/0.9 http/1.1".split()
GOOD_QUERIES = [b"", b"?a=1", b"?access_token=" + HANDLE, b"?a=%C3%A4&access_token=&b"]
PLACES = ["query", "method", "version", "proof", "headers", "body"]


def plainly(line: bytes, *headers: bytes) -> bytes:
    """A request with these, and what every one has."""
    return b"\r\n".join(
        [line, b"Host: localhost", MARK.encode() + b": 1", b"Connection: close", *headers, b"", b""]
    )


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A good request that is odd in a place or two.

    One that is odd everywhere is refused, and shows nothing.
    """
    odd = draw(st.sets(st.sampled_from(PLACES), max_size=2))
    method = draw(st.sampled_from(ODD_METHODS if "method" in odd else [b"GET", b"POST"]))
    target = draw(st.sampled_from(GOOD_PATHS)) + draw(
        queries() if "query" in odd else st.sampled_from(GOOD_QUERIES)
    )
    version = draw(st.sampled_from(ODD_VERSIONS)) if "version" in odd else b"HTTP/1.1"
    headers = draw(PROOFS) if "proof" in odd else [BEARER]
    if "headers" in odd:
        headers = [
            *headers,
            *draw(
                st.lists(
                    st.sampled_from(ODD_HEADERS) | st.binary(max_size=20), min_size=1, max_size=3
                )
            ),
        ]
    body = draw(BODIES) if "body" in odd else b""
    if body and draw(st.booleans()):
        headers, body = (
            [*headers, b"Transfer-Encoding: chunked"],
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
        )
    elif body:
        headers = [*headers, b"Content-Length: %d" % len(body)]
    return plainly(b" ".join([method, target, version]), *draw(st.permutations(headers))) + body


# --- what arrives ---------------------------------------------------------------------------------


def readings(path: str) -> Iterator[str]:
    """What servers may take a path for.

    It may be escaped once or more, and have other slashes, dots, parameters, cases or extensions.
    """
    for _ in range(3):
        steps: list[str] = []
        for part in (
            unicodedata.normalize("NFKC", path).replace("\\", "/").partition("\0")[0].split("/")
        ):
            name = re.split("[;?#]", part)[0].strip()
            if name == "..":
                steps = steps[:-1]
            elif name.partition(".")[0]:
                steps.append(name.partition(".")[0].lower())
        yield "/" + "/".join(steps)
        path = unquote(path)


def tokens_in(query: str) -> list[str]:
    """All values that somebody may take for the token.

    The name may be in any case or spelling, and anything may stand between the parameters.
    """
    found = []
    for part in re.split("[&;?,]", query):
        name, _, value = part.partition("=")
        for _ in range(3):
            name = unquote_plus(name)
        if re.sub(r"[\W_]|\[.*", "", name.lower()) == "accesstoken":
            found.append(unquote_plus(value))
    return found


def is_as_it_should_be(seen: Seen, handle: str, port: int) -> None:
    """Plain, allowed, with our token once, or none for users' calls, and nothing of who asked."""
    path, _, query = seen.target.partition("?")
    is_of_users = path in PATHS_OF_USERS
    for reading in {path, *readings(path)}:
        assert reading.startswith(PREFIXES) or (is_of_users and reading == path), seen
        assert not any(
            reading == known or reading.startswith(f"{known}/") for known in TOKEN_PATHS
        ), seen
    assert TOKEN not in tokens_in(query) if is_of_users else tokens_in(query) == [TOKEN], seen
    names = Counter(name.lower().replace("_", "-") for name, _ in seen.headers)
    assert not names.keys() & {
        "authorization",
        "proxy-authorization",
        "cookie",
        "x-original-url",
        "x-rewrite-url",
    }, seen
    assert not any("override" in name or name.startswith("x-token-broker") for name in names), seen
    said = repr(seen.headers) + unquote(unquote(seen.target))
    assert KEY not in said, seen
    assert handle not in said, seen
    assert seen.all("Host") == [f"127.0.0.1:{port}"]
    assert names["host"] == 1
    assert names["content-length"] + names["transfer-encoding"] <= 1


def is_kept(passage: Passage, raw: bytes, *, by_socket: bool) -> None:
    """All that is promised, whatever is said."""
    answer = passage.says(raw.replace(HANDLE, passage.handle.encode()), by_socket=by_socket)
    assert all(code < 500 for code in statuses(answer)), answer
    assert CANARY not in unquote(answer.decode(errors="replace")), answer
    for seen in passage.arrived():
        is_as_it_should_be(seen, passage.handle, passage.wechat.port)


@settings(BOUNDED, max_examples=1500)
@given(paths(), st.sampled_from([b"GET", b"POST", b"PUT"]), st.sampled_from(GOOD_QUERIES))
@example(b"/cgi-bin/user/get", b"GET", b"")
def test_however_a_path_is_spelt_it_is_no_token_call_and_no_other_one(
    passage: Passage, path: bytes, method: bytes, query: bytes
) -> None:
    is_kept(passage, plainly(method + b" " + path + query + b" HTTP/1.1", BEARER), by_socket=False)


@settings(BOUNDED, max_examples=1000)
@given(requests(), st.sampled_from([False, False, True]))
@example(plainly(b"GET /cgi-bin/user/get?a=1 HTTP/1.1", BEARER), False)  # noqa: FBT003
@example(plainly(b"GET /cgi-bin/user/get?access_token=" + HANDLE + b" HTTP/1.1"), False)  # noqa: FBT003
@example(plainly(b"GET /cgi-bin/user/get?a=# HTTP/1.1", BEARER), False)  # noqa: FBT003
@example(plainly(b"GET /cgi-bin/refused?a=1 HTTP/1.1", b"X-Token-Broker: 1"), True)  # noqa: FBT003
def test_whatever_is_asked_wechat_gets_plain_calls_with_our_token_once(
    passage: Passage,
    raw: bytes,
    by_socket: bool,  # noqa: FBT001
) -> None:
    is_kept(passage, raw, by_socket=by_socket)
