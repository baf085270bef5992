"""Our own `cblas_sgemm`, compiled where there is a C compiler: the files of native/.

It computes products of few rows with weights in the time that reading the weights takes, and
hands all others, in pieces, to the BLAS that was chosen. Its threads do not wait by spinning,
as OpenBLAS's do: beside one busy process, two OpenBLAS threads can be ten times slower than one.

Built once for a processor and a version of the sources, in under two seconds; without a
compiler, or where the processor has no AVX2, MLX calls the BLAS itself.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ENVIRONMENT_VARIABLE = "MLX_PARALLM_PRODUCTS"

_SOURCES = Path(__file__).parent / "native"
_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-shared", "-fPIC", "-pthread")
_LINKING = ("-fvisibility=hidden", "-Wl,-Bsymbolic")  # nobody else's functions of these names
_NEEDED = frozenset(("avx2", "fma"))
_TIMEOUT_S = 60


class BuildError(Exception):
    """The library could not be compiled."""


def why_not() -> str:
    """Why the library is not for this machine; empty where it is."""
    if os.environ.get(ENVIRONMENT_VARIABLE, "").lower() in ("off", "0", "none"):
        return f"{ENVIRONMENT_VARIABLE}=off"
    if platform.machine().lower() not in ("x86_64", "amd64") or not _processor() >= _NEEDED:
        return "this processor has no AVX2"
    return "" if _compiler() else "there is no C compiler"


def library_file(folder: Path) -> Path:
    """Where the library for this processor lies, or would lie."""
    key = hashlib.sha256(" ".join((*sorted(_processor()), *_FLAGS, *_LINKING)).encode())
    for source in sorted(_SOURCES.iterdir()):
        key.update(source.read_bytes())
    return folder / f"products-{key.hexdigest()[:16]}.so"


def build(library: Path) -> None:
    """Compile the library; it appears whole or not at all. Raises BuildError, OSError."""
    temporary = library.with_name(f"{library.name}.{os.getpid()}.tmp")
    sources = [str(source) for source in sorted(_SOURCES.glob("*.c"))]
    command = [_compiler() or "cc", *_FLAGS, *_LINKING, "-o", str(temporary), *sources]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        if done.returncode:
            raise BuildError((done.stderr.strip().splitlines() or ["no message"])[-1])
        temporary.replace(library)
    except subprocess.TimeoutExpired as error:
        raise BuildError(str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)


class Products:
    """The opened library. Its `cblas_sgemm` is public: an MLX that is loaded later calls it."""

    def __init__(self, file: Path) -> None:
        self.library = ctypes.CDLL(str(file), mode=os.RTLD_NOW | os.RTLD_GLOBAL)

    def start(self, blas: ctypes.CDLL) -> None:
        """Set the BLAS for all other products; it must compute with one thread."""
        self.library.mlx_parallm_products_start(ctypes.cast(blas.cblas_sgemm, ctypes.c_void_p))

    def packed_room(self) -> int:
        """Bytes behind the anchor of weights in few bits."""
        self.library.mlx_parallm_packed_room.restype = ctypes.c_int64
        return int(self.library.mlx_parallm_packed_room())

    def set_packed_anchor(self, address: int) -> None:
        """Addresses from here on stand for weights in few bits."""
        self.library.mlx_parallm_packed_anchor(ctypes.c_void_p(address))

    def put_packed(self, place: int, addresses: Sequence[int | None], sizes: Sequence[int]) -> None:
        """What the n-th 64 bytes behind the anchor stand for.

        Args:
            addresses: of words, scales and biases; no biases are mxfp4.
            sizes: rows, columns, bits, numbers with one scale, and experts, 0 where each row
                of a product is for the same matrix.
        """
        self.library.mlx_parallm_packed_put(
            place, *map(ctypes.c_void_p, addresses), *map(ctypes.c_int, sizes)
        )

    @property
    def threads(self) -> int:
        """Threads that share a product."""
        return int(self.library.mlx_parallm_products_threads())

    @threads.setter
    def threads(self, n: int) -> None:
        self.library.mlx_parallm_products_set_threads(ctypes.c_int(n))


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, _COMPILERS)), None)


def _processor() -> frozenset[str]:
    """What the processor can do, in the kernel's words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
