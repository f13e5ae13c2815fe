"""This machine's processor and memory, as far as the runtimes and ``edgevlm doctor`` need to know."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import subprocess
import sys
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_M_ARENA_MAX = -8  # malloc.h
_MEMORY_INFO = Path("/proc/meminfo")
_TOPOLOGY = Path("/sys/devices/system/cpu")


@functools.cache
def model() -> str:
    """The processor's name, such as ``Intel(R) Core(TM) i7-1165G7``."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    fields = _cpu_fields()
    return fields.get("model name") or platform.processor() or platform.machine()


@functools.cache
def flags() -> frozenset[str]:
    """Instruction sets in Linux's spelling (``avx2``, ``amx_int8``, ``asimddp``); empty elsewhere."""
    fields = _cpu_fields()
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def is_intel() -> bool:
    """Whether it is one of Intel's, as far as Linux says."""
    return _cpu_fields().get("vendor_id") == "GenuineIntel"


def has_amx() -> bool:
    """Whether it is an x86 processor that multiplies matrices in tiles."""
    return "amx_tile" in flags()


def multiplies_bf16() -> bool:
    """Whether it multiplies bfloat16 matrices in hardware, several times as fast as float32."""
    return "amx_bf16" in flags()


def multiplies_int8() -> bool:
    """Whether it is an x86 processor that multiplies and adds int8 in one instruction (VNNI)."""
    return not flags().isdisjoint({"avx512_vnni", "avx_vnni"})


def _cpu_fields() -> dict[str, str]:
    """The first processor's block of Linux's ``/proc/cpuinfo``."""
    if not _CPU_INFO.exists():
        return {}
    block = _CPU_INFO.read_text(errors="replace").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def logical_cores() -> int:
    """Cores that this process may use, hyper-threads counted."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores() -> int:
    """Cores that this process may use, each counted once; decoding gains nothing from hyper-threads."""
    if not hasattr(os, "sched_getaffinity"):
        return logical_cores()
    siblings = set()
    for core in os.sched_getaffinity(0):
        path = _TOPOLOGY / f"cpu{core}/topology/thread_siblings_list"
        siblings.add(path.read_text().strip() if path.exists() else str(core))
    return len(siblings)


def total_memory() -> int | None:
    """Bytes of memory in the machine; None where the system does not say."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def peak_memory() -> int | None:
    """Bytes of memory that this process held at most since its start; None on Windows."""
    # getrusage would also count what the process held from which this one was started.
    if (peak := _memory("VmHWM", "self")) is not None:
        return peak
    if sys.platform == "win32":
        return None
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def resident_memory(process: int | None = None) -> int | None:
    """Bytes of memory that this process, or another, holds now; None where the system does not say."""
    return _memory("VmRSS", "self" if process is None else str(process))


def _memory(field: str, process: str) -> int | None:
    """Bytes that Linux tells of a process."""
    status = Path("/proc", process, "status")
    if not status.exists():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields[field].split()[0]) * 1024


def return_freed_memory() -> None:
    """Hand back to the system what glibc keeps of freed memory; other C libraries decide for themselves."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def limit_memory_arenas(count: int) -> None:
    """Have glibc's malloc use at most this many arenas, each of which keeps some MB of freed memory.

    By default there may be 8 for each core, and each thread that ever computes takes one. It holds for those
    that come from now on; other C libraries have none.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, count)


def available_memory() -> int | None:
    """Bytes that can still be allocated, swap included; without Linux's figures, the total."""
    if not _MEMORY_INFO.exists():
        return total_memory()
    fields = dict(line.split(":", 1) for line in _MEMORY_INFO.read_text().splitlines())
    names = ("MemAvailable", "SwapFree")
    return sum(int(fields[name].split()[0]) * 1024 for name in names if name in fields)
