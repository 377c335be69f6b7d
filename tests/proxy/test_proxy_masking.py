"""What no client of the proxy gets to see, whatever WeChat answers: tokens and the AppSecret."""

import gzip
import json
import re
from typing import Any
from urllib.parse import quote

import pytest

from broker.core.interfaces import refused_by_default
from broker.core.ports import Minted, Verdict
from broker.core.secret import Secret
from tests.harness.doubles import ACCOUNT, Bench
from tests.harness.proxy_harness import ME, Hostile, Proxied, Seen, errcode, raw, says

GET = "/cgi-bin/user/get"
RID = "/cgi-bin/openapi/rid/get"
SECRET = ACCOUNT.secret.reveal()


def held(broker: Proxied) -> str:
    keeper = broker.registry.find("main")
    assert keeper
    assert keeper.credential.token
    return keeper.credential.token.value.reveal()


# --- interfaces that are refused ------------------------------------------------------------------

REFUSED = [
    RID,
    "/cgi-bin/clear_quota",
    "/cgi-bin/clear_quota/v2",
    "/cgi-bin/openapi/quota/clear",
    "/cgi-bin/component/api_component_token",
    "/cgi-bin/component/api_authorizer_token",
    "/cgi-bin/component/clear_quota/v2",
    "/cgi-bin/service/get_corp_token",
    "/cgi-bin/service/v2/get_permanent_code",
    "/cgi-bin/corpgroup/corp/gettoken",
    "/tcb/getqcloudtoken",
]


@pytest.mark.parametrize("path", [*REFUSED, f"/{RID}", "/cgi-bin/OpenAPI/Rid/GET"])
async def test_what_quotes_requests_resets_quotas_or_hands_out_tokens_is_refused(
    bench: Bench, wechat: Hostile, path: str
) -> None:
    async with Proxied(bench, wechat).serving(prefixes=("/cgi-bin/", "/tcb/")) as broker:
        await broker.look()
        for method in ("GET", "POST"):
            answer = await broker.ask(method, path, headers=ME)
            assert await errcode(answer) == 48001
            known = refused_by_default(f"/{path.lstrip('/')}")
            assert known is not None
            said = await answer.text()
            assert json.loads(said)["errmsg"].startswith("api unauthorized (token-broker: ")
            assert f"[proxy] allow = ['{known}']" in said
        assert wechat.seen == []


@pytest.mark.parametrize(
    "path",
    ["/cgi-bin/openapi/quota/get", "/cgi-bin/clear_quotas", "/cgi-bin/service/miniprogram/x", GET],
)
async def test_their_neighbours_pass(broker: Proxied, path: str) -> None:
    assert await (await broker.get(path)).json() == {"total": 3}


async def test_the_operator_may_allow_one_and_no_other(bench: Bench, wechat: Hostile) -> None:
    async with Proxied(bench, wechat).serving(allow=("/cgi-bin/clear_quota",)) as broker:
        await broker.look()
        answer = await broker.ask("POST", "/cgi-bin/clear_quota", data=b"{}", headers=ME)
        assert await answer.json() == {"total": 3}
        for path in (RID, "/cgi-bin/token", "/cgi-bin/openapi/quota/clear"):
            assert await errcode(await broker.ask("POST", path, headers=ME)) != 0
        assert len(wechat.seen) == 1


# --- answers that quote ---------------------------------------------------------------------------


def spellings(text: str) -> list[str]:
    escaped = json.dumps(text)[1:-1]
    quoted = quote(text, safe="")
    spelled = [
        text,
        quoted,
        re.sub("%..", lambda found: found[0].lower(), quoted),
        escaped,
        escaped.replace("/", r"\/"),
    ]
    return list(dict.fromkeys(spelled))


def quoting(text: str) -> bytes:
    """What `rid/get` says of a call, as WeChat's own sample has it."""
    url = f"access_token={text}&next_openid="
    return f'{{"errcode":0,"request":{{"request_url":"{url}","client_ip":"1.2.3.4"}}}}'.encode()


async def test_the_token_in_an_answer_is_masked_and_its_length_stays(
    bench: Bench, broker: Proxied
) -> None:
    bench.wechat.answers.append(Minted(Secret('97_"/quoted\\/x'), 7200))
    bench.clock.pass_(7200)
    await broker.look()
    for spelled in spellings(held(broker)):
        body = quoting(spelled)
        broker.wechat.answers[GET] = says(body, "Content-Type: application/json")
        answer = await broker.get(GET)
        masked = body.replace(spelled.encode(), b"*" * len(spelled))
        assert await answer.read() == masked
        assert answer.headers["Content-Length"] == str(len(body))


async def test_the_previous_token_and_the_secret_are_masked_too(broker: Proxied) -> None:
    before = held(broker)
    broker.bench.clock.pass_(3000)
    broker.wechat.dead = {before}
    broker.bench.wechat.verdicts.append(Verdict.DEAD)
    assert await (await broker.get(GET)).json() == {"total": 3}
    assert held(broker) != before
    for hidden in (before, held(broker), SECRET):
        broker.wechat.answers[GET] = says(quoting(hidden))
        assert hidden.encode() not in await (await broker.get(GET)).read()


@pytest.mark.parametrize("length", ["declared", "chunked", "until it closes"])
@pytest.mark.parametrize("size", [20_000, 60_000, 200_000])
async def test_of_a_long_answer_the_first_64_kib_are_masked(
    broker: Proxied, size: int, length: str
) -> None:
    token = held(broker).encode()
    body = b'{"a":"' + b"x" * 15_000 + token + b"x" * size + b'"}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    said = {
        "declared": head + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        "chunked": head
        + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
        "until it closes": head + b"\r\n" + body,
    }[length]
    broker.wechat.answers[GET] = raw(said)
    assert await (await broker.get(GET)).read() == body.replace(token, b"*" * len(token))


async def test_an_error_page_that_quotes_the_url_is_masked(broker: Proxied) -> None:
    token = held(broker)
    page = f"<html><h1>502</h1>/cgi-bin/user/get?access_token={token}</html>".encode()
    broker.wechat.answers[GET] = says(page, "Content-Type: text/html", status="502 Bad Gateway")
    answer = await broker.get(GET)
    assert answer.status == 502
    assert await answer.read() == page.replace(token.encode(), b"*" * len(token))


@pytest.mark.parametrize("more", [100, 50_000])
async def test_a_packed_answer_that_quotes_is_unpacked_and_masked(
    broker: Proxied, more: int
) -> None:
    token = held(broker)
    body = quoting(token) + b" " * more
    broker.wechat.answers[GET] = says(gzip.compress(body), "Content-Encoding: gzip")
    answer = await broker.get(GET, **{"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in answer.headers
    assert await answer.read() == body.replace(token.encode(), b"*" * len(token))


async def test_a_packed_answer_that_quotes_and_is_too_long_to_mask_is_withheld(
    broker: Proxied,
) -> None:
    body = quoting(held(broker)) + b" " * 10_000_000
    broker.wechat.answers[GET] = says(gzip.compress(body), "Content-Encoding: gzip")
    answer = await broker.get(GET, **{"Accept-Encoding": "gzip"})
    assert await errcode(answer) == -1
    assert broker.outcomes == [("main", "withheld")]


async def test_a_header_that_quotes_any_of_them_is_left_out(broker: Proxied) -> None:
    token = held(broker)
    headers = [f"X-One: {token}", f"X-Two: https://x/?s={quote(SECRET, safe='')}", "X-Three: 3"]
    broker.wechat.answers[GET] = says(b"{}", *headers)
    answer = await broker.get(GET)
    assert [name for name in answer.headers if name.startswith("X-")] == ["X-Three"]


async def test_what_quotes_nothing_stays_as_it_is(broker: Proxied) -> None:
    body = json.dumps({"access_token": "another's", "text": "名" * 40_000}).encode()

    async def answer(seen: Seen, *streams: Any) -> None:
        await says(body)(seen, *streams)

    broker.wechat.answers[GET] = answer
    assert await (await broker.get(GET)).read() == body
