"""The hook: a program of the operator's that is run for each event, one at a time."""

import asyncio
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

from broker.notify.events import Event
from broker.notify.result import TAKEN, SendResult, Trouble
from broker.system import log

DEADLINE_S: Final = 30.0
MOST_OUTPUT: Final = 16 * 1024
INHERITED: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")  # nothing else: variables hold secrets


class Hook:
    """A program that gets the event as JSON on stdin, and its name and app in the environment.

    What it prints goes to our log at debug. After `deadline_s` it is killed with everything it
    started.
    """

    def __init__(self, program: Path, deadline_s: float = DEADLINE_S) -> None:
        self.label = f"hook {program.name}"
        self._program = program
        self._deadline_s = deadline_s
        self._turn = asyncio.Lock()

    async def send(self, event: Event) -> SendResult:
        """See :class:`broker.notify.result.Receiver`."""
        async with self._turn:
            try:
                process = await asyncio.create_subprocess_exec(
                    self._program,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    start_new_session=True,
                    cwd="/",
                    env=_environment(event),
                )
            except (OSError, ValueError):
                return SendResult(Trouble.NOT_STARTED)
            try:
                async with asyncio.timeout(self._deadline_s):
                    await self._talk(process, event)
                    code = await process.wait()
            except TimeoutError:
                return SendResult(Trouble.TIMEOUT)
            finally:
                await _kill(process)
        return SendResult(Trouble.EXIT, code) if code else TAKEN

    async def _talk(self, process: asyncio.subprocess.Process, event: Event) -> None:
        """Hand it the event, and log what it says until it closes its output."""
        stdin, stdout = process.stdin, process.stdout
        if stdin is None or stdout is None:
            raise AssertionError("both are pipes")
        with suppress(ConnectionError):  # a program need not read what it is told
            stdin.write(json.dumps(event.as_json(), ensure_ascii=False).encode() + b"\n")
            await stdin.drain()
        stdin.close()
        left = MOST_OUTPUT
        while piece := await stdout.read(4096):
            if left > 0:
                said = piece[:left].decode(errors="replace").rstrip("\n")
                log.tell("hook-output", hook=self._program.name, output=said)
            left -= len(piece)


async def _kill(process: asyncio.subprocess.Process) -> None:
    """End whatever is left of the program and of what it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _environment(event: Event) -> dict[str, str]:
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return {**kept, "TOKEN_BROKER_EVENT": event.name, "TOKEN_BROKER_APP": event.app}
