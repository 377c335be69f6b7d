"""Keeps a SIGHUP from killing a daemon that is still starting, and remembers that it came.

A program that has not said what SIGHUP means to it is killed by one. To import the daemon takes half
a second, so this is done before anything is imported, and imports nothing itself.
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
