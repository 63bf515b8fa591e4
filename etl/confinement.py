"""What a child that works on strangers' data gives up when it begins, so that it cannot have it back.

The limits are hard ones, which nobody may raise again who is not root; and of root's own rights a child keeps those
alone without which it could not read and write files of other users, as root may in a container.
"""

import contextlib
import ctypes
import resource
from pathlib import Path

_SET_DUMPABLE, _SET_NO_NEW_PRIVS = 4, 38
_CAPABILITY_VERSION = 0x20080522
_KEPT = 0b11111
"""Capabilities 0 to 4: CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID.  Not SYS_RESOURCE, which raises limits."""


def give_up_rights() -> None:
    """Leave no core dump, gain no rights from what is executed, and drop most rights of root.

    A core dump would hold a stranger's data and ours.  One that is piped to a program, as systemd's and Ubuntu's are,
    knows no limit; a process that is not dumpable leaves none at all, and no other of this user can look into it.
    """
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Only Linux knows them.
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0)
        libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # Version and thread, 0 for this one; effective, permitted and inheritable, twice 32 bits of them.
        header, held = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
        if libc.capget(header, held) == 0:
            kept = held[1] & _KEPT
            libc.capset(header, (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0))


def limit_memory(wanted: int, headroom: int) -> None:
    """Limit the address space, for good, to ``wanted`` bytes, or ``headroom`` above what is mapped if that is more."""
    # Only Linux limits address space reliably; elsewhere limits of pixels and of time remain.
    with contextlib.suppress(OSError, ValueError):
        limit = _lower(resource.RLIMIT_AS, max(wanted, _mapped() + headroom))
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def room() -> float:
    """Return the bytes that this process may still map; infinite where there is no limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return float("inf") if limit == resource.RLIM_INFINITY else limit - _mapped()


def limit_time(seconds: int) -> None:
    """Limit, for good, the processor time that this process may use from now on; the kernel kills one that has."""
    with contextlib.suppress(OSError, ValueError):
        limit = _lower(resource.RLIMIT_CPU, _used_s() + seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))


def time_left() -> float:
    """Return the seconds of processor time until the hard limit; infinite where there is none."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    return float("inf") if hard == resource.RLIM_INFINITY else hard - _used_s()


def limit_time_of_next(seconds: int) -> None:
    """Let what follows use so much processor time, within `limit_time`; the kernel ends what takes more."""
    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (_lower(resource.RLIMIT_CPU, _used_s() + seconds), hard))


def _mapped() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _used_s() -> int:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return int(used.ru_utime + used.ru_stime) + 1


def _lower(kind: int, wanted: int) -> int:
    """Return ``wanted``, or the hard limit that this process was given where that is lower."""
    hard = resource.getrlimit(kind)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
