"""Resident memory of this process, and what becomes of freed memory."""

import ctypes
import os
import platform
import resource
import sys
from pathlib import Path

_STATM = Path("/proc/self/statm")
# Parameters of glibc's mallopt(3) (malloc.h) and their values here: no allocation by mmap, the heap's end returned to
# the system only beyond 2 GiB, the heap grown by 64 MiB at least, one heap for all threads. Only the first heap can
# hold blocks as large as feature maps.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_KEEPING = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20))


def resident_bytes() -> int:
    """Return the bytes of this process in memory; its peak where the system does not report them (macOS)."""
    if _STATM.exists():
        # proc(5): size and resident set, in pages.
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # getrusage(2): kilobytes on Linux, bytes on macOS.
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for its next allocations; return whether its C library can.

    By default glibc maps every large block anew and unmaps it when it is freed, and the system clears each page at its
    first use: for a network on a CPU, whose feature maps come and go, that was a sixth to a third of its time. The peak
    of resident memory stays the same; what is lost is that it falls between images.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) == 1 for parameter, value in _KEEPING)
