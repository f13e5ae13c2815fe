"""The processor and the memory of this machine."""

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
def cpu_model() -> str:
    """Return the processor's name, such as ``Intel(R) Core(TM) i7-1165G7``."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    fields = _cpu_fields()
    return fields.get("model name") or platform.processor() or platform.machine()


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Return Linux's names of the CPU's features (``avx2``, ``amx_int8``, ``asimddp``); empty elsewhere."""
    fields = _cpu_fields()
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def is_intel() -> bool:
    """Return True if Linux says that the processor is Intel's."""
    return _cpu_fields().get("vendor_id") == "GenuineIntel"


def has_amx() -> bool:
    """Return True if the processor has AMX, Intel's matrix instructions."""
    return "amx_tile" in cpu_flags()


def has_amx_bf16() -> bool:
    """Return True if the processor has AMX for bfloat16, several times as fast as float32."""
    return "amx_bf16" in cpu_flags()


def has_vnni() -> bool:
    """Return True if the processor has VNNI: it multiplies and adds int8 in one instruction."""
    return not cpu_flags().isdisjoint({"avx512_vnni", "avx_vnni"})


def _cpu_fields() -> dict[str, str]:
    """Return the fields of the first processor in Linux's ``/proc/cpuinfo``."""
    if not _CPU_INFO.exists():
        return {}
    block = _CPU_INFO.read_text(errors="replace").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def logical_cores() -> int:
    """Count the cores that this process may use, with each hyper-thread as a core."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores() -> int:
    """Count the cores that this process may use. Decoding gains nothing from hyper-threads."""
    if not hasattr(os, "sched_getaffinity"):
        return logical_cores()
    siblings = set()
    for core in os.sched_getaffinity(0):
        path = _TOPOLOGY / f"cpu{core}/topology/thread_siblings_list"
        siblings.add(path.read_text().strip() if path.exists() else str(core))
    return len(siblings)


def total_memory() -> int | None:
    """Return the bytes of memory in the machine; None if the system does not tell."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def peak_memory() -> int | None:
    """Return the most bytes of memory that this process has held since its start; None on Windows."""
    # getrusage would also count memory of the process that started this one.
    if (peak := _memory("VmHWM", "self")) is not None:
        return peak
    if sys.platform == "win32":
        return None
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def resident_memory(process: int | None = None) -> int | None:
    """Return the bytes of memory that a process holds now; None if the system does not tell.

    Args:
        process: id of the process; None takes this one.
    """
    return _memory("VmRSS", "self" if process is None else str(process))


def _memory(field: str, process: str) -> int | None:
    """Return a field in bytes of Linux's ``/proc/PROCESS/status``; None without such a file."""
    status = Path("/proc", process, "status")
    if not status.exists():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields[field].split()[0]) * 1024


def return_freed_memory() -> None:
    """Return freed memory that glibc keeps to the system. Do nothing with other C libraries."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def limit_memory_arenas(count: int) -> None:
    """Limit the arenas of glibc's malloc. Each arena keeps some MB of freed memory.

    By default there are up to 8 arenas per core, and each thread that allocates takes one. Arenas that exist
    already stay. Do nothing with other C libraries.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, count)


def available_memory() -> int | None:
    """Return the bytes that can still be allocated, swap included; on other systems than Linux, the total."""
    if not _MEMORY_INFO.exists():
        return total_memory()
    fields = dict(line.split(":", 1) for line in _MEMORY_INFO.read_text().splitlines())
    names = ("MemAvailable", "SwapFree")
    return sum(int(fields[name].split()[0]) * 1024 for name in names if name in fields)
