"""Which file system a folder lies on: locks on network file systems are not to be trusted."""

from __future__ import annotations

import os
import re
from typing import Final

from changefeed.errors import BadUrl

_CLUSTER: Final = (
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "fhgfs",
    "gfs",
    "gfs2",
    "glusterfs",
    "gpfs",
    "lustre",
    "ocfs2",
    "orangefs",
)
_REMOTE: Final = ("cifs", "ncpfs", "nfs", "nfs4", "smb3", "smbfs")
_FUSE: Final = ("fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs")
NETWORK: Final = frozenset((*_CLUSTER, *_REMOTE, *_FUSE))
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


def refuse_network(folder: str, url: str, mounts: str | None = None) -> None:
    """Raise BadUrl if `folder` lies on a network file system. `mounts`: text of /proc/self/mountinfo; where there is
    none (not Linux) nothing is refused."""
    if mounts is None:
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
                mounts = file.read()
        except OSError:
            return
    kind = kind_of(os.path.realpath(folder), mounts)
    if kind in NETWORK:
        raise BadUrl(
            f"{url!r}: {folder} lies on a network file system ({kind}), where file locks cannot be trusted: "
            "use a local folder, or zk:// for several machines"
        )


def kind_of(path: str, mounts: str) -> str:
    """The type of the file system that holds a real path, by the deepest and newest mount point above it."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4]).rstrip("/")
        if (path == point or path.startswith(point + "/")) and len(point) >= best:
            best, kind = len(point), after.split(" ", 1)[0]
    return kind
