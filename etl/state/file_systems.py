"""On which file systems a state may lie: those that nobody writes to but through this machine's kernel.

SQLite's write-ahead log keeps its index in memory that all its processes share, and `flock` is the kernel's: neither
reaches another machine, nor whoever has the same directory by another way.  On some of these file systems the database
cannot be opened at all, on others two writers get in, and nobody is told.
"""

import os
from pathlib import Path

_SHARED = frozenset({
    # Network and cluster file systems.
    "9p", "acfs", "afs", "auristorfs", "beegfs", "beegfs_nodev", "ceph", "cifs", "coda", "davfs", "fhgfs", "gfs",
    "gfs2", "glusterfs", "gpfs", "ibrix", "kafs", "lustre", "ncp", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs",
    "panfs", "pvfs2", "smb2", "smb3", "smbfs", "snfs", "wekafs",
    # Directories that a virtual machine has of its host.
    "drvfs", "prl_fs", "virtiofs", "vboxsf", "vmhgfs",
})  # fmt: skip

_LOCAL_FUSE = frozenset({"encfs", "fuse-overlayfs", "gocryptfs"})
"""FUSE file systems on which a state was tried and goes well.  Of all others nothing is known but that most lead to a
network (sshfs, rclone, s3fs, gcsfuse, JuiceFS, GlusterFS, MooseFS; many name no kind at all) or show a directory that
can be had without them (bindfs, mergerfs), where their locks are not seen.  NTFS and exFAT (``fuseblk``) are local."""


def is_shared(kind: str) -> bool:
    """Return whether a file system, by `file_system_of`, can be written to beside this machine's kernel."""
    fuse, _, what = kind.partition(".")
    return what not in _LOCAL_FUSE if fuse == "fuse" else kind in _SHARED


def file_system_of(path: Path) -> str:
    """Return the kind of the file system that holds ``path``, as in ``/proc/mounts``; empty where nothing tells it."""
    try:
        descriptor = os.open(path, getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC)
        try:
            status, opened = os.fstat(descriptor), Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        finally:
            os.close(descriptor)
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    number = next((line.split()[1] for line in opened.splitlines() if line.startswith("mnt_id:")), "")
    return kind_of_mount(mounts, number, f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}")


def kind_of_mount(mounts: str, number: str, device: str) -> str:
    """Return the kind of one mount of ``/proc/self/mountinfo``, by its number, or where that is unknown by its device.

    Not by its path: a mount may hide under another one, or be there again in another place.
    """
    for line in reversed(mounts.splitlines()):
        place, _, what = line.partition(" - ")
        fields = place.split(" ")
        if fields[0] == number or (not number and fields[2:3] == [device]):
            return what.split(" ")[0]
    return ""
