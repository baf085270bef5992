"""How much memory this process uses, may use, and finds free, as the operating system says.

Linux says all of it, limits of containers (cgroup v2) and of `ulimit -v` too. Elsewhere what is
not said is None.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def physical_bytes() -> int:
    """All memory of the machine, or of the smallest container that the process is in."""
    whole = _PAGE * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *(most for most, _ in _container_limits())])


def resident_bytes() -> int | None:
    """Bytes of the process in physical memory; None where the system does not say (macOS)."""
    sizes = _statm()
    return None if sizes is None else sizes[1]


def available_bytes() -> int | None:
    """Bytes that the process can still take before something has to be swapped out or killed:
    what other programs leave, and what the limits of its containers and of `ulimit -v` leave."""
    found = [left for _, left in _container_limits()]
    if (free := _meminfo("MemAvailable")) is not None:
        found.append(free)
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    sizes = _statm()
    if most != resource.RLIM_INFINITY and sizes is not None:
        found.append(most - sizes[0])
    return min(found, default=None)


def return_freed_memory() -> None:
    """Let the C library give freed memory back to the system, where it can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _statm() -> tuple[int, int] | None:
    """Bytes of address space and of physical memory."""
    path = _PROC / "self/statm"
    if not path.exists():
        return None
    space, resident, *_ = path.read_text().split()
    return int(space) * _PAGE, int(resident) * _PAGE


def _meminfo(name: str) -> int | None:
    path = _PROC / "meminfo"
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    return None


def _container_limits() -> Iterator[tuple[int, int]]:
    """Of each cgroup around the process that has a limit: bytes at most, and bytes left."""
    for group in _containers():
        try:
            text = (group / "memory.max").read_text().strip()
            if text == "max":
                continue
            used = int((group / "memory.current").read_text()) - _page_cache(group)
        except (OSError, ValueError):
            continue  # the root group, or one of cgroup v1
        yield int(text), int(text) - used


def _containers() -> Iterator[Path]:
    """The process's cgroup and those around it; none where there are no cgroups v2."""
    path = _PROC / "self/cgroup"
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        if line.startswith("0::"):
            inner = _CGROUPS / line.removeprefix("0::").strip().lstrip("/")
            # In a container with a namespace of its own, the root is the container's.
            yield from (inner, *(one for one in inner.parents if one.is_relative_to(_CGROUPS)))


def _page_cache(group: Path) -> int:
    """Bytes of files that the kernel drops where memory is short."""
    for line in (group / "memory.stat").read_text().splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0
