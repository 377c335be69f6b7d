"""Lays the unit's kernel restrictions on itself and becomes another program.

Runs alone, inside the namespaces.

argv: a JSON object {"allow": [system calls], "errno": number, "families": [numbers]}, then the
command. systemd builds its filters with the same library, in the same way (its
src/shared/seccomp-util.c).
"""

import ctypes
import errno
import json
import os
import sys
from typing import Any, NoReturn

ALLOW, EQ, MASKED_EQ = 0x7FFF0000, 4, 7  # seccomp.h
FAMILIES = range(46)
NAMESPACES = [
    0x80,
    0x20000,
    0x2000000,
    0x4000000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
]  # CLONE_NEW*
PROT_WRITE, PROT_EXEC, SHM_EXEC = 2, 4, 0o100000
SUID, SGID = 0o4000, 0o2000


class Comparison(ctypes.Structure):
    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    ]


def refuse(number: int) -> int:
    return 0x00050000 | number


class Filter:
    def __init__(self, default: int) -> None:
        self.lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        self.lib.seccomp_init.restype = ctypes.c_void_p
        self.context = ctypes.c_void_p(self.lib.seccomp_init(ctypes.c_uint32(default)))

    def rule(self, action: int, name: str, *comparisons: Comparison) -> None:
        number = self.lib.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return  # of another architecture
        array = (Comparison * len(comparisons))(*comparisons)
        done = self.lib.seccomp_rule_add_array(
            self.context, ctypes.c_uint32(action), number, len(comparisons), array
        )
        if done not in (0, -errno.EACCES):  # EACCES: the same as the default
            raise OSError(-done, f"{name}: {os.strerror(-done)}")

    def load(self) -> None:
        done = self.lib.seccomp_load(self.context)
        if done:
            raise OSError(-done, os.strerror(-done))


def refuse_all_but(allow: list[str], number: int) -> Filter:
    """SystemCallFilter=, SystemCallErrorNumber=."""
    calls = Filter(refuse(number))
    for name in allow:
        calls.rule(ALLOW, name)
    return calls


def restrict_address_families(allow: list[int]) -> Filter:
    calls = Filter(ALLOW)
    for family in FAMILIES:
        if family not in allow:
            calls.rule(refuse(errno.EAFNOSUPPORT), "socket", Comparison(0, EQ, family, 0))
    return calls


def memory_deny_write_execute() -> Filter:
    calls = Filter(ALLOW)
    both = PROT_WRITE | PROT_EXEC
    calls.rule(refuse(errno.EPERM), "mmap", Comparison(2, MASKED_EQ, both, both))
    calls.rule(refuse(errno.EPERM), "mprotect", Comparison(2, MASKED_EQ, PROT_EXEC, PROT_EXEC))
    calls.rule(refuse(errno.EPERM), "pkey_mprotect", Comparison(2, MASKED_EQ, PROT_EXEC, PROT_EXEC))
    calls.rule(refuse(errno.EPERM), "shmat", Comparison(2, MASKED_EQ, SHM_EXEC, SHM_EXEC))
    return calls


def restrict_namespaces() -> Filter:
    calls = Filter(ALLOW)
    calls.rule(
        refuse(errno.ENOSYS), "clone3"
    )  # its flags are in memory, where no filter looks; libc falls back
    calls.rule(refuse(errno.EPERM), "setns")
    for flag in NAMESPACES:
        for name in ("clone", "unshare"):
            calls.rule(refuse(errno.EPERM), name, Comparison(0, MASKED_EQ, flag, flag))
    return calls


def restrict_suid_sgid() -> Filter:
    calls = Filter(ALLOW)
    for name, place in {
        "chmod": 1,
        "fchmod": 1,
        "fchmodat": 2,
        "mkdir": 1,
        "mkdirat": 2,
        "mknod": 1,
        "mknodat": 2,
    }.items():
        for bit in (SUID, SGID):
            calls.rule(refuse(errno.EPERM), name, Comparison(place, MASKED_EQ, bit, bit))
    return calls


def main(options: dict[str, Any], command: list[str]) -> NoReturn:
    # Several filters, as systemd lays them: the strictest answer wins. Last the one that could
    # forbid to lay another.
    restrict_address_families(options["families"]).load()
    memory_deny_write_execute().load()
    restrict_namespaces().load()
    restrict_suid_sgid().load()
    refuse_all_but(options["allow"], options["errno"]).load()
    os.environ["LISTEN_PID"] = str(os.getpid())  # bwrap has started us as a child
    os.execvp(command[0], command)  # noqa: S606 -- that is what it is for


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
