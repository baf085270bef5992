"""Gives a BLAS to an MLX that is loaded already.

`import mlx.core` sorts before `import mlx_parallm`, so many programs have it first. The linker
has then put the addresses of the reference BLAS into libmlx's table of functions. This writes
other addresses there, and only over entries that hold exactly what is expected.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from mlx_parallm.cpu.elf import ElfLibrary

_NAMES = frozenset(("cblas_sgemm", "cblas_dgemm", "cblas_cgemm", "cblas_zgemm"))


def replace_functions(libraries: list[ctypes.CDLL], site_packages: Path) -> bool:
    """Let the loaded libmlx of the mlx-cpu wheel call the first library that has a function.

    False: nothing was changed.

    Raises OSError and ElfError. Products must not be running in another thread.
    """
    (libblas,) = site_packages.glob("mlx_cpu.libs/libblas*")
    reference = ctypes.CDLL(str(libblas))  # the one that is loaded already
    slots = function_slots((site_packages / "mlx/lib/libmlx.so").resolve())
    if not slots or any(slot.value != _address(reference, name) for name, slot in slots.items()):
        return False
    for name, slot in slots.items():
        slot.value = next(_address(each, name) for each in libraries if hasattr(each, name))
    return True


def function_slots(libmlx: Path) -> dict[str, ctypes.c_void_p]:
    """Where the loaded library keeps the addresses of the products; only what can be written."""
    writable, start = _mappings(libmlx)
    return {
        name: ctypes.c_void_p.from_address(start + offset)
        for name, offset in ElfLibrary(libmlx.read_bytes()).function_slots()
        if name in _NAMES and any(start + offset in area for area in writable)
    }


def _address(library: ctypes.CDLL, name: str) -> int | None:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value


def _mappings(library: Path) -> tuple[list[range], int]:
    """Writable areas of a loaded library, and the address at which its file starts."""
    writable, start = [], 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        area, rights, offset, _, _, *path = line.split(maxsplit=5)
        if path != [str(library)]:
            continue
        low, high = (int(address, 16) for address in area.split("-"))
        if int(offset, 16) == 0:
            start = low
        if rights.startswith("rw"):
            writable.append(range(low, high))
    if not start:
        raise OSError(f"{library} is not loaded")
    return writable, start
