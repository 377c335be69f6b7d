"""Keeps a SIGHUP from killing a daemon that is still starting, and remembers that it came.

A SIGHUP kills a program that has not set a handler for it. Importing the daemon takes half a
second, so the handler is set before anything is imported, and this module imports nothing itself.
"""

import signal

_came: list[int] = []


def hold_back() -> None:
    """Survive SIGHUP from now on. Windows has no such signal."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda number, _: _came.append(number))


def have_come() -> bool:
    """Return True if there was a SIGHUP since :func:`hold_back`."""
    return bool(_came)
