"""Which BLAS is chosen, and what is seen of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mlx_parallm.cpu import blas, blas_copy, blas_library
from mlx_parallm.cpu.elf import ElfLibrary
from tests.cpu.interpreter import PUBLIC, REPORT, linux, run, wheel_library


@pytest.mark.parametrize(
    ("system", "own", "chosen"),
    [(95.0, 2.0, "system"), (60.0, 2.0, "wheel"), (300.0, 2.0, "system"), (95.0, 90.0, None)],
)
def test_the_system_wins_a_tie_and_the_slow_are_refused(
    system: float, own: float, chosen: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {"system": system, "wheel": 100.0}

    def prepare(source: str, path: Path, cache: Path) -> blas._Choice:
        return blas._Choice("OpenBLAS", source, str(path), str(path), speeds[source], None)

    monkeypatch.setattr(blas, "_prepare", prepare)
    monkeypatch.setattr(blas, "_own_gflops", lambda: own)
    candidates = [("system", tmp_path / "a"), ("wheel", tmp_path / "b")]
    if chosen is None:
        with pytest.raises(blas_copy.BlasError, match="not faster"):
            blas._fastest(candidates, tmp_path)
    else:
        assert blas._fastest(candidates, tmp_path).source == chosen


@linux
def test_a_system_library_is_found_and_measured(tmp_path: Path) -> None:
    folder = tmp_path / "lib"
    folder.mkdir()
    # Stands in for a distribution's OpenBLAS: names without a prefix, everything public.
    renames = {
        name: name.removeprefix("scipy_")
        for name in ElfLibrary(wheel_library().read_bytes()).defined_symbols()
    }
    library = folder / "libopenblas.so.0"
    library.write_bytes(wheel_library().read_bytes())
    (tmp_path / "map").write_text(
        "".join(f"{old} {new}\n" for old, new in renames.items() if old != new)
    )
    options = ["--set-soname", library.name, "--rename-dynamic-symbols", str(tmp_path / "map")]
    subprocess.run([blas_copy._patchelf(), *options, str(library)], check=True)
    answer, _ = run(REPORT, tmp_path, MLX_PARALLM_BLAS=str(library))
    assert (answer["path"], answer["name"]) == (str(library), "OpenBLAS")
    assert answer["version"].startswith("OpenBLAS 0.")
    (copy,) = (tmp_path / "mlx_parallm").glob("lib*.so")
    names = ElfLibrary(copy.read_bytes()).defined_symbols()
    assert {n for n in names if not n.startswith(blas_library.PRIVATE_PREFIX)} == PUBLIC
    # And it would have been a candidate.
    found, _ = run(
        "from mlx_parallm.cpu import blas\nanswer = [str(p) for s, p in blas._candidates()]",
        tmp_path,
        LD_LIBRARY_PATH=str(folder),
    )
    assert str(library) in found


@linux
def test_the_copy_of_the_wheel_shows_only_what_mlx_calls(tmp_path: Path) -> None:
    copy = blas_copy.isolated_copy(wheel_library(), tmp_path)
    names = ElfLibrary(copy.read_bytes()).defined_symbols()
    assert {n for n in names if not n.startswith(blas_library.PRIVATE_PREFIX)} == PUBLIC
    before = copy.stat().st_mtime_ns
    assert blas_copy.isolated_copy(wheel_library(), tmp_path) == copy
    assert copy.stat().st_mtime_ns == before
    gflops, version = blas_copy.measure(copy)
    assert gflops > 0
    assert version is not None


@linux
def test_wrong_products_are_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A library with cblas_sgemm that computes nothing leaves zeros behind.
    copy = blas_copy.isolated_copy(wheel_library(), tmp_path)
    monkeypatch.setattr(blas_library, "_product", lambda *arguments: lambda: 1e-3)
    assert not blas_library.measure(str(copy), rows=2, depth=3, columns=4)["correct"]
    monkeypatch.setattr(
        blas_copy, "_run", lambda command: '{"correct": false, "gflops": 1, "version": null}'
    )
    with pytest.raises(blas_copy.BlasError, match="wrong"):
        blas_copy.measure(copy)


def test_the_quota_of_a_container_limits_the_threads(tmp_path: Path) -> None:
    quota, everything = tmp_path / "cpu.max", blas_library.usable_cpus(tmp_path / "missing")
    assert everything >= 1
    for text, cpus in [
        ("max 100000", everything),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("9999900000 100000", everything),
        ("nonsense", everything),
    ]:
        quota.write_text(text)
        assert blas_library.usable_cpus(quota) == cpus, text


def test_info_reads_well() -> None:
    none = blas.BlasInfo("default", "none", reason="MLX_PARALLM_BLAS=off")
    some = blas.BlasInfo("BLIS", "system", "/lib/libblis.so", 80.4, "BLIS 0.9", 2)
    assert str(none) == "default (MLX_PARALLM_BLAS=off)"
    assert str(some) == "BLIS 0.9 (system, 2 threads, 80 GFLOP/s)"
