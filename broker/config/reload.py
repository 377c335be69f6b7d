"""Reads the configuration again on SIGHUP, and applies to the running daemon what can be applied.

Apps, clients and the policy change while the daemon runs; calls and waiting requests go on. A
configuration that is wrong is refused as a whole, and the one in force stays. What needs a restart
(where it listens, the store, where WeChat is) is named, and the rest is applied.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager

from broker.config.load import ConfigError, load
from broker.config.settings import Settings
from broker.system import log
from broker.system.systemd import Supervisor

Apply = Callable[[Settings], Awaitable[Collection[str]]]


@asynccontextmanager
async def reloading(
    settings: Settings, hung_up: asyncio.Event, apply: Apply, supervisor: Supervisor
) -> AsyncIterator[None]:
    """Read the configuration again each time `hung_up` is set, and `apply` it.

    `apply` returns the keys that it could not apply, each with the reason. It raises ConfigError
    before it has changed anything if the settings must be refused.
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
    """Reload once; return the outcome in words for `systemctl status`. The log has it too."""
    try:
        # On a thread: a file that is slow to read must not hold up those who ask.
        read = await asyncio.to_thread(load, settings.path)
        failed = await apply(read)
    except ConfigError as error:
        log.tell("reload-refused", errors=error.errors)
        errors = "; ".join(error.errors).replace("\n", " ")
        return f"the configuration is refused, the old one stays: {errors}"
    # A bug here must not end the daemon, nor the next reload.
    except Exception as error:  # noqa: BLE001
        log.crash("reload", error)
        return "the configuration could not be applied because of a bug, see the log"
    waiting, status = needs_restart(settings, read), []
    if failed:
        log.tell("reload-incomplete", failed=list(failed))
        status.append(f"not applied: {', '.join(failed)}")
    if waiting:
        log.tell("restart-needed", keys=waiting)
        status.append(f"a restart is needed for: {', '.join(waiting)}")
    if not status:
        log.tell("reloaded", path=str(settings.path or "the environment"))
    return "; ".join(["configuration read", *status])


def needs_restart(running: Settings, read: Settings) -> list[str]:
    """Return the keys whose new values need a restart; `running` is what the daemon began with."""
    pairs = {
        "server.listen": (running.server.listen, read.server.listen),
        "server.express_lane": (running.server.express_lane, read.server.express_lane),
        "compat": (running.compat, read.compat),
        "proxy": (running.proxy, read.proxy),
        "logins": (running.logins, read.logins),
        "store": (running.store, read.store),
        "wechat": (running.wechat, read.wechat),
    }
    return [key for key, (old, new) in pairs.items() if old != new]
