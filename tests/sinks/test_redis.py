"""A token in Redis: a real server, and wechatpy's own storage as the reader."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis as client
from wechatpy import WeChatClient
from wechatpy.session.redisstorage import RedisStorage

from broker.config.reach import KEYS
from broker.config.schema import SinkFormat
from broker.config.settings import RedisSinkSettings
from broker.core.secret import Secret
from broker.sinks.formats import Writing
from broker.sinks.outcome import SinkError, SinkFault
from broker.sinks.redis import RedisSink
from broker.sinks.sinks import Sinks
from tests.harness.doubles import APPID, CANARY, NOON, Bench, looked, value_of
from tests.harness.redis_server import RedisServer

pytestmark = pytest.mark.needs("redis-server")

TOKEN = f"{CANARY}-token"


def settings(
    server: RedisServer, form: SinkFormat = SinkFormat.TEXT, url: str = ""
) -> RedisSinkSettings:
    key = KEYS[form].format(app="main", appid=APPID)
    return RedisSinkSettings(Secret(url or server.url), key, form)


@asynccontextmanager
async def opened(of: RedisSinkSettings) -> AsyncIterator[RedisSink]:
    sink = RedisSink(of)
    yield sink
    await sink.close()


@pytest.fixture
def reader(redis: RedisServer) -> Any:
    """What a program sees there."""
    connection = client.Redis.from_url(redis.url, decode_responses=True)
    yield connection
    connection.close()


def writing(call: int = 1, token: str = TOKEN, **more: Any) -> Writing:
    plain = {
        "app": "main",
        "appid": APPID,
        "epoch": "e",
        "minted_at": NOON + call,
        "expires_in": 3600,
        "ends_at": NOON + 3600,
    }
    return Writing(**{**plain, "token": token, "version": f"e-{call}", "call": call, **more})


@pytest.mark.parametrize(
    ("form", "key", "value"),
    [
        (SinkFormat.TEXT, "token-broker:main", TOKEN),
        (SinkFormat.WECHATPY, f"wechatpy:{APPID}_access_token", f'"{TOKEN}"'),
        (SinkFormat.WXJAVA, f"wx:access_token:{APPID}", TOKEN),
        (SinkFormat.SILENCEPER, f"gowechat_officialaccount__access_token_{APPID}", TOKEN),
        (
            SinkFormat.EASYWECHAT,
            f"official_account.access_token.{APPID}.token-broker.0",
            f's:{len(TOKEN)}:"{TOKEN}";',
        ),
    ],
)
async def test_each_reader_finds_the_token_under_its_key_for_as_long_as_is_promised(
    redis: RedisServer, reader: Any, form: SinkFormat, key: str, value: str
) -> None:
    async with opened(settings(redis, form)) as sink:
        await sink.write(writing(expires_in=77))
        assert reader.get(key) == value
        assert 75 <= reader.ttl(key) <= 77
        assert TOKEN not in reader.get(f"{key}:version")
        assert TOKEN not in sink.label


async def test_wechatpy_takes_the_token_from_its_redis_and_asks_nobody(redis: RedisServer) -> None:
    async with opened(settings(redis, SinkFormat.WECHATPY)) as sink:
        await sink.write(writing())
    storage = client.Redis.from_url(redis.url)
    reading = WeChatClient(APPID, "no-secret", session=RedisStorage(storage, prefix="wechatpy"))
    assert reading.access_token == TOKEN
    storage.close()


async def test_an_older_token_is_never_put_over_a_newer_one(
    redis: RedisServer, reader: Any
) -> None:
    of = settings(redis)
    async with opened(of) as one, opened(of) as other:
        await one.write(writing(2, "newer"))
        await other.write(writing(1, "older"))
        assert reader.get(of.key) == "newer"
        await other.write(writing(9, "older", epoch="f", minted_at=NOON))
        assert reader.get(of.key) == "newer"
        await other.write(writing(1, "newest", epoch="f", minted_at=NOON + 60))
        assert reader.get(of.key) == "newest"
        await one.clear()
        assert reader.get(of.key) == "newest", "it is another's"
        await other.clear()
        assert reader.get(of.key) is None


async def test_many_writers_at_once_end_with_the_newest(redis: RedisServer, reader: Any) -> None:
    of = settings(redis)
    sinks = [RedisSink(of) for _ in range(8)]
    calls = [*range(1, 41)]
    await asyncio.gather(
        *(sinks[call % 8].write(writing(call, f"t{call}")) for call in reversed(calls))
    )
    assert reader.get(of.key) == "t40"
    for sink in sinks:
        await sink.close()


async def fault(attempt: Callable[[], Awaitable[None]]) -> SinkFault:
    with pytest.raises(SinkError) as caught:
        await attempt()
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None
    return caught.value.fault


async def test_what_is_wrong_is_said_by_its_kind(
    tmp_path: Path, redis: RedisServer, reader: Any
) -> None:
    guarded = RedisServer(tmp_path, password=f"{CANARY}-password")
    guarded.start()
    wrong = guarded.url.replace("password", "wrong")
    async with opened(settings(guarded, url=wrong)) as sink:
        assert await fault(lambda: sink.write(writing())) is SinkFault.WRONG_PASSWORD
        assert CANARY not in sink.label
    async with opened(settings(guarded)) as sink:
        await sink.write(writing())
        guarded.stop()
        assert await fault(lambda: sink.write(writing())) is SinkFault.UNREACHABLE
    async with opened(settings(redis)) as sink:
        await sink.write(writing())
        reader.config_set("maxmemory", "1")
        assert await fault(lambda: sink.write(writing(2))) is SinkFault.REFUSED


async def test_a_server_that_hangs_costs_its_deadline_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker.sinks.redis.PATIENCE_S", 0.2)
    done = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = Secret(f"redis://127.0.0.1:{port}/0")
    async with opened(RedisSinkSettings(url, "k", SinkFormat.TEXT)) as sink:
        assert await fault(lambda: sink.write(writing())) is SinkFault.TIMEOUT
    done.set()
    server.close()
    await server.wait_closed()


# --- a keeper and its sinks -----------------------------------------------------------------------


@asynccontextmanager
async def kept(bench: Bench, of: RedisSinkSettings) -> AsyncIterator[tuple[Sinks, Any]]:
    keeper = await bench.keeper()
    sinks = Sinks(lambda _: keeper, bench.clock.wall, bench.clock.now, str)
    async with sinks.running():
        await sinks.apply({"main": (of,)})
        yield sinks, keeper


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


async def test_a_sink_has_each_token_as_soon_as_it_is_in_force(
    bench: Bench, redis: RedisServer, reader: Any
) -> None:
    of = settings(redis)
    async with kept(bench, of) as (sinks, keeper):
        await looked(keeper)
        await until(lambda: reader.get(of.key) == value_of(keeper))
        bench.clock.pass_(60)
        await keeper.refresh(5)
        await until(lambda: reader.get(of.key) == value_of(keeper))
        await until(lambda: sinks.status("main")[0]["version"] == keeper.credential.version)
        (row,) = sinks.status("main")
        assert row["state"] == "current"
        assert row["trouble"] is None
        assert sinks.behind == []
        assert CANARY not in str(sinks.status("main"))


async def test_a_redis_that_comes_back_empty_has_the_token_again(
    bench: Bench, redis: RedisServer, reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.sinks.sinks.AGAIN_AFTER_S", (0.05,))
    monkeypatch.setattr("broker.sinks.sinks.LOOK_S", 0.05)
    of = settings(redis)
    async with kept(bench, of) as (sinks, keeper):
        await looked(keeper)
        await until(lambda: reader.get(of.key) == value_of(keeper))
        redis.stop()
        await until(lambda: sinks.behind == [("main", next(iter(sinks)).sink.label)])
        (row,) = sinks.status("main")
        assert (row["state"], row["trouble"]["code"]) == ("behind", "unreachable")
        redis.start()
        await until(lambda: reader.get(of.key) == value_of(keeper))
        await until(lambda: sinks.behind == [])
        reader.delete(of.key)
        await until(lambda: reader.get(of.key) == value_of(keeper))


async def test_a_token_that_is_no_longer_served_is_taken_away(
    bench: Bench, redis: RedisServer, reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.sinks.sinks.LOOK_S", 0.05)
    of = settings(redis)
    async with kept(bench, of) as (sinks, keeper):
        await looked(keeper)
        await until(lambda: reader.get(of.key) == value_of(keeper))
        bench.clock.pass_(7300)
        await until(lambda: reader.get(of.key) is None)
        await until(lambda: sinks.status("main")[0]["state"] == "empty")


async def test_a_reload_takes_sinks_up_and_lets_others_go_undisturbed(
    bench: Bench, redis: RedisServer, reader: Any
) -> None:
    one, other = settings(redis), settings(redis, SinkFormat.WXJAVA)
    async with kept(bench, one) as (sinks, keeper):
        await looked(keeper)
        await until(lambda: reader.get(one.key))
        (first,) = list(sinks)
        await sinks.apply({"main": (one, other)})
        await until(lambda: reader.get(other.key) == value_of(keeper))
        assert first in list(sinks)
        await sinks.apply({"main": (other,)})
        assert [place.settings for place in sinks] == [other]
