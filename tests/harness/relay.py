"""A TCP relay to PostgreSQL.

The link can be cut, fall silent, and lose the answer to one statement.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

BYTES: Final = 65536


@dataclass
class Relay:
    """Listens on `port` of loopback and passes on to `target`, another port there.

    `cut_after`: the connection is cut instead of the answer to a statement that holds this (lower
    case).
    """

    target: int
    port: int = 0
    cut_after: bytes = b""
    _is_cut: bool = False
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._open.set()

    def fall_silent(self) -> None:
        """Carry nothing from now on.

        What is sent meanwhile arrives when it is over, as with a network that lost packets.
        """
        self._open.clear()

    def cut(self) -> None:
        """Reset all connections; new ones are made."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def cut_off(self) -> None:
        """Reset all connections, and each new one, until healed."""
        self._is_cut = True
        self.cut()

    def heal(self) -> None:
        """Carry everything again."""
        self._is_cut = False
        self._open.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its beginning to its end."""
        self._writers.add(writer)
        await self._open.wait()
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:  # nobody is there: as the target itself would say
            writer.transport.abort()
            return
        self._writers.add(there_writer)
        asked: list[bytes] = []
        try:
            await asyncio.gather(
                self._pump(reader, there_writer, asked),
                self._pump(there_reader, writer, asked, answers=True),
            )
        except asyncio.CancelledError:
            return
        finally:
            self._writers -= {writer, there_writer}

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        asked: list[bytes],
        *,
        answers: bool = False,
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(BYTES):
                if answers and self.cut_after and asked and self.cut_after in asked[-1].lower():
                    self.cut()  # it was done, and nobody is told
                    return
                if not answers:
                    asked[:] = [data]
                await self._open.wait()
                writer.write(data)
                await writer.drain()
            await self._open.wait()
        writer.close()


@asynccontextmanager
async def relay_to(target: int) -> AsyncIterator[Relay]:
    """A running relay."""
    relay = Relay(target)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        relay.heal()
        relay.cut()
        server.close()
