"""What came of writing to a sink, and what a sink is."""

from enum import StrEnum
from typing import Protocol

from broker.sinks.formats import Writing


class SinkFault(StrEnum):
    """Why a sink does not hold the token in force; pages and commands put it into words."""

    DISK_FULL = "disk-full"
    NOT_WRITABLE = "not-writable"  # rights, a missing directory, a read-only file system
    OPEN_TO_OTHERS = "open-to-others"  # the directory: others may write to it
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    WRONG_PASSWORD = "wrong-password"  # noqa: S105 -- a name
    REFUSED = "refused"  # by Redis: no right to the key, no memory, a replica
    BUG = "bug"


class SinkError(Exception):
    """A sink could not be written; the text is the fault, and holds nothing else."""

    def __init__(self, fault: SinkFault) -> None:
        super().__init__(fault.value)
        self.fault = fault


class Sink(Protocol):
    """Where a token is written. `label` names the place, without a password."""

    label: str

    async def write(self, writing: Writing) -> None:
        """Write a token, unless there is a newer one. Raises SinkError."""

    async def clear(self) -> None:
        """Remove the token that we wrote, unless another broker wrote later. Raises SinkError."""

    async def close(self) -> None:
        """Let go of connections; the token stays."""
