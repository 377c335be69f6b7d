"""SIGHUP: the configuration is read again.

Who may ask and the policy change under way; nobody is called, nothing is cut off.

All of a file or none: where it will not do, what is in force stays. What a running daemon cannot
change (where it listens, its store, its apps, where WeChat is) stays as a whole until a restart,
and is named.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from broker.config.load import ConfigError, load
from broker.config.settings import Settings
from broker.system import log
from broker.system.systemd import Supervisor

Apply = Callable[[Settings], Awaitable[None]]


@asynccontextmanager
async def reloading(
    settings: Settings, hung_up: asyncio.Event, apply: Apply, supervisor: Supervisor
) -> AsyncIterator[None]:
    """Each time `hung_up` is set, read the file again and `apply` by it.

    `apply` raises ConfigError and changes nothing.
    """
    task = asyncio.create_task(
        _reload_each_time(settings, hung_up, apply, supervisor), name="reload"
    )
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _reload_each_time(
    settings: Settings, hung_up: asyncio.Event, apply: Apply, supervisor: Supervisor
) -> None:
    while await hung_up.wait():
        hung_up.clear()
        supervisor.reloading()
        supervisor.notify("READY=1", f"STATUS={await _reload(settings, apply)}")


async def _reload(settings: Settings, apply: Apply) -> str:
    """What came of it, for `systemctl status`; the log has it too."""
    try:
        # On a thread: a file that is slow to read must not hold up those who ask.
        read = await asyncio.to_thread(load, settings.path)
        await apply(read)
    except ConfigError as error:
        log.tell("reload-refused", errors=error.errors)
        return (
            f"the configuration is refused, the old one stays: {'; '.join(error.errors)}".replace(
                "\n", " "
            )
        )
    # A bug here must not end the daemon, nor the next reload
    except Exception as error:  # noqa: BLE001
        log.crash("reload", error)
        return "the configuration could not be read for a bug, see the log; the old one stays"
    if left := needs_restart(settings, read):
        log.tell("restart-needed", keys=left)
        return f"configuration read; a restart is needed for: {', '.join(left)}"
    log.tell("reloaded", path=str(settings.path))
    return "configuration read"


def needs_restart(running: Settings, read: Settings) -> list[str]:
    """The keys whose new values wait for a restart."""
    pairs = {
        "server.listen": (running.server.listen, read.server.listen),
        "server.express_lane": (running.server.express_lane, read.server.express_lane),
        "compat": (running.compat, read.compat),
        "proxy": (running.proxy, read.proxy),
        "logins": (running.logins, read.logins),
        "store": (running.store, read.store),
        "wechat": (running.wechat, read.wechat),
        "apps": (running.apps, read.apps),
    }
    return [key for key, (old, new) in pairs.items() if old != new]
