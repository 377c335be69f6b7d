"""Where a store file may lie: on a local file system, in a directory that only its owner writes to.

Owners are judged as ssh judges them: what belongs to us or to root is trusted. Modes that are too
wide on files of ours are put right (lock.py), since platforms widen them at each mount.
"""

import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

MOUNTS: Final = Path("/proc/self/mountinfo")
# File systems that other hosts may mount at the same time, and whose locks do not hold among them.
NETWORKED: Final = {
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "coda",
    "davfs",
    "glusterfs",
    "gpfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "orangefs",
    "prl_fs",
    "pvfs2",
    "smb2",
    "smb3",
    "smbfs",
    "vboxsf",
    "virtiofs",
    "vmhgfs",
    "fuse.beegfs",
    "fuse.blobfuse",
    "fuse.blobfuse2",
    "fuse.ceph",
    "fuse.ceph-fuse",
    "fuse.cosfs",
    "fuse.curvefs",
    "fuse.davfs",
    "fuse.gcsfuse",
    "fuse.geesefs",
    "fuse.glusterfs",
    "fuse.goofys",
    "fuse.juicefs",
    "fuse.lizardfs",
    "fuse.mfs",
    "fuse.moosefs",
    "fuse.mountpoint-s3",
    "fuse.ossfs",
    "fuse.quobyte",
    "fuse.rclone",
    "fuse.s3fs",
    "fuse.s3ql",
    "fuse.seaweedfs",
    "fuse.sshfs",
    "fuse.vmhgfs-fuse",
    "fuse.weed",
}
LAYERS: Final = {"overlay", "9p", "aufs", "fuse.fuse-overlayfs"}  # of a container's own image


class Mount(NamedTuple):
    """A mount point and the kind of file system there."""

    point: Path
    kind: str


def mount_of(directory: Path, mounts: Path = MOUNTS) -> Mount | None:
    """Return the mount that a directory is on, None where that cannot be known."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return None
    wanted = directory.resolve()
    # "36 35 98:0 /root /mount/point options … - fstype source options": the longest mount point
    # over the directory counts, and of several at one point the last.
    found = None
    for words in lines:
        if "-" not in words:
            continue
        point = Path(words[4].replace("\\040", " "))
        if point != wanted and point not in wanted.parents:
            continue
        if found is None or len(point.parts) >= len(found.point.parts):
            found = Mount(point, words[words.index("-") + 1])
    return found


def network_file_system(path: Path, mounts: Path = MOUNTS) -> str | None:
    """Return the kind of network file system that `path` is on, None where it is local or unknown.

    gVisor shows the root of its sandbox as 9p. No other host shares that one.
    """
    mount = mount_of(path.parent, mounts)
    if mount is None or mount.kind not in NETWORKED:
        return None
    is_sandbox = mount == Mount(Path("/"), "9p")
    return None if is_sandbox else mount.kind


def is_on_container_layer(path: Path, mounts: Path = MOUNTS) -> bool:
    """Return True if `path` is on the layer that a container loses when it is replaced."""
    mount = mount_of(path.parent, mounts)
    return mount is not None and mount.point == Path("/") and mount.kind in LAYERS


def refusals(path: Path) -> list[str]:
    """Return why a store must not be at `path`, as sentences that name the cure."""
    directory = path.parent
    if not directory.is_dir():
        return [f"the directory {directory} does not exist: create it, owned by the daemon's user"]
    found = [why for why in [_of_directory(directory)] if why]
    if kind := network_file_system(path):
        found.append(
            f"{path} is on a network file system ({kind}), whose locks cannot be trusted: use a"
            " local disk"
        )
    return found + [why for file in files_of(path) if (why := of_file(file))]


def files_of(path: Path) -> list[Path]:
    """Return what belongs to the store at `path`: itself, its lock file, and what SQLite adds."""
    return [path.with_name(path.name + suffix) for suffix in ("", ".lock", "-wal", "-shm")]


def of_file(path: Path) -> str | None:
    """Return why a file must not be used: somebody else may have put it there.

    None where it may.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return why_not(path, found)


def why_not(path: Path, found: os.stat_result) -> str | None:
    """Return the same of a file that was looked at."""
    if stat.S_ISLNK(found.st_mode):
        return f"{path} is a symbolic link: somebody may have planted it; remove it"
    if not stat.S_ISREG(found.st_mode):
        return f"{path} is not a regular file"
    if found.st_uid not in trusted():
        return (
            f"{path} belongs to another user (uid {found.st_uid}), who can read and change what is"
            f" in it: chown {os.geteuid()} {path}, or run the daemon as its owner"
        )
    return None


def trusted() -> set[int]:
    """Return the users whose files are ours to trust."""
    return {os.geteuid(), 0}


def _of_directory(directory: Path) -> str | None:
    found = directory.stat()
    if found.st_uid not in trusted():
        return (
            f"the directory {directory} belongs to another user (uid {found.st_uid}), who can"
            f" replace what is in it: chown {os.geteuid()} {directory}, or run the daemon as its"
            " owner"
        )
    if found.st_mode & stat.S_ISVTX or _is_volume(directory):
        return None  # nobody replaces another's files there, or nobody else gets there
    ours = {os.getegid(), *os.getgroups()}
    others = [
        who
        for who, may_write in (
            ("everybody", found.st_mode & stat.S_IWOTH),
            (
                f"the group {found.st_gid}",
                found.st_mode & stat.S_IWGRP and found.st_gid not in ours,
            ),
        )
        if may_write
    ]
    if not others:
        return None
    return (
        f"{others[0]} may write to the directory {directory}, and so replace what is in it:"
        f" chmod go-w {directory}"
    )


def _is_volume(directory: Path) -> bool:
    """Return True if a directory is the top of a volume of its own.

    Platforms make those as wide as they like (Kubernetes: 0777) and let nobody else in.
    """
    mount = mount_of(directory)
    return mount is not None and mount.point == directory.resolve() != Path("/")
