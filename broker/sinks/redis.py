"""A token in Redis, under the key and in the encoding of its reader, while it is surely good.

Beside the key stands `KEY:version`, which holds the order of the token and no part of it. A script
compares and sets both at once, so that of several brokers none puts an older token over a newer.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from broker.config.settings import RedisSinkSettings
from broker.sinks.formats import Writing, encoded
from broker.sinks.outcome import SinkError, SinkFault

PATIENCE_S: Final = 5.0  # for a connection, and for an answer
KEPT_S: Final = 86_400  # the order, beyond the token's end: an older one may still come
# KEYS: the token, its order. ARGV: token, seconds, epoch, call, time, seconds for the order.
# 1 where it was written, or there already for as long; 0 where a newer one is there.
WRITE: Final = """
local order = redis.call('GET', KEYS[2])
if order and redis.call('EXISTS', KEYS[1]) == 1 then
  local epoch, call, at = string.match(order, '^(%S+) (%d+) (%d+)$')
  if epoch == ARGV[3] and tonumber(call) > tonumber(ARGV[4]) then return 0 end
  if epoch and epoch ~= ARGV[3] and tonumber(at) > tonumber(ARGV[5]) then return 0 end
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
redis.call('SET', KEYS[2], ARGV[3] .. ' ' .. ARGV[4] .. ' ' .. ARGV[5], 'EX', ARGV[6])
return 1
"""
CLEAR: Final = """
if redis.call('GET', KEYS[2]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class RedisSink:
    """A :class:`broker.sinks.outcome.Sink` that is a key of Redis. Needs the extra [redis]."""

    def __init__(self, settings: RedisSinkSettings) -> None:
        # An extra
        from redis.asyncio import Redis  # noqa: PLC0415
        from redis.asyncio.retry import Retry  # noqa: PLC0415
        from redis.backoff import NoBackoff  # noqa: PLC0415

        self._settings = settings
        self._redis = cast(
            "Any",
            Redis.from_url(
                settings.url.reveal(),
                socket_timeout=PATIENCE_S,
                socket_connect_timeout=PATIENCE_S,
                retry=Retry(NoBackoff(), 1),  # once: the connection may have broken while idle
                client_name="token-broker",
                protocol=2,  # servers before 6 know no other
            ),
        )
        self._keys = settings.key, f"{settings.key}:version"
        self._order: str | None = None
        where = self._redis.connection_pool.connection_kwargs
        place = where.get("path") or f"{where.get('host')}:{where.get('port')}"
        self.label = f"redis {place}/{where.get('db') or 0} {settings.key}"

    async def write(self, writing: Writing) -> None:
        """See :class:`broker.sinks.outcome.Sink`."""
        value = encoded(self._settings.format, writing)
        args = (value, writing.expires_in, *writing.order().split(" "))
        args = (*args, writing.expires_in + KEPT_S)
        if await self._run(lambda: self._redis.eval(WRITE, 2, *self._keys, *args)):
            self._order = writing.order()

    async def clear(self) -> None:
        """See :class:`broker.sinks.outcome.Sink`."""
        if (order := self._order) is not None:
            await self._run(lambda: self._redis.eval(CLEAR, 2, *self._keys, order))
            self._order = None

    async def close(self) -> None:
        """See :class:`broker.sinks.outcome.Sink`."""
        await self._redis.aclose()

    async def _run(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """Ask Redis; its errors, whose texts may quote what was sent, become faults."""
        from redis import exceptions  # noqa: PLC0415 -- an extra

        try:
            return await ask()
        except exceptions.AuthenticationError:
            raise SinkError(SinkFault.WRONG_PASSWORD) from None
        except (exceptions.TimeoutError, TimeoutError):
            raise SinkError(SinkFault.TIMEOUT) from None
        except (exceptions.ConnectionError, OSError):
            raise SinkError(SinkFault.UNREACHABLE) from None
        except exceptions.RedisError:
            raise SinkError(SinkFault.REFUSED) from None
