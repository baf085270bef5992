"""What blas.py keeps on the disk: measured once, repaired, trusted, pruned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_parallm.cpu import blas
from tests.cpu.interpreter import REPORT, linux, run, wheel_library
from tests.waiting import PATIENCE_S


@linux
def test_the_second_start_measures_nothing_and_damage_is_repaired(tmp_path: Path) -> None:
    first, _ = run(REPORT, tmp_path)
    folder = tmp_path / "mlx_parallm"
    (record,) = folder.glob("blas-*.json")
    (copy,) = folder.glob("lib*.so")
    # Were it measured again, the made-up speed would be gone.
    record.write_text(json.dumps({**json.loads(record.read_text()), "gflops": 12345.0}))
    assert run(REPORT, tmp_path)[0]["gflops"] == 12345.0
    record.write_text("{")
    assert run(REPORT, tmp_path)[0]["path"] == first["path"]
    copy.unlink()
    assert run(REPORT, tmp_path)[0]["path"] == first["path"]
    assert copy.is_file()


@linux
def test_processes_that_start_together(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(blas.__file__).parents[1])!r})\n{REPORT}"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", f"{code}\nprint(answer['source'], answer['product'])"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    results = [process.communicate(timeout=PATIENCE_S) for process in started]
    assert {error for _, error in results} == {""}
    assert {out for out, _ in results} in ({"wheel 4.0\n"}, {"system 4.0\n"})
    left = sorted(path.suffix for path in (tmp_path / "mlx_parallm").iterdir())
    assert left == [".json", ".lock", ".so", ".so"]


@linux
def test_a_home_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answer, _ = run(REPORT, tmp_path / "file", TMPDIR=str(tmp_path))
    assert answer["source"] in ("system", "wheel")
    assert list(tmp_path.glob(f"mlx_parallm-{os.getuid()}/*.so"))


@linux
def test_a_folder_that_others_can_write_to_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / f"mlx_parallm-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(PermissionError):
        blas._cache_folder()
    planted.chmod(0o700)
    assert blas._cache_folder() == planted
    monkeypatch.setenv("XDG_CACHE_HOME", "~/relative")
    assert blas._cache_folder() == planted


@linux
def test_pruning_removes_what_nothing_refers_to(tmp_path: Path) -> None:
    def record(name: str, source: Path) -> Path:
        copy = tmp_path / f"lib{name}.so"
        copy.touch()
        choice = blas._Choice("OpenBLAS", "wheel", str(source), str(copy), 1.0, None)
        blas._write_choice(tmp_path / f"blas-{name}.json", choice)
        return copy

    kept = record("kept", wheel_library())
    gone = record("gone", tmp_path / "removed.so")
    loser = tmp_path / "libloser.so"
    loser.touch()
    blas._prune(tmp_path)
    assert (kept.exists(), gone.exists(), loser.exists()) == (True, False, False)
    assert [path.name for path in tmp_path.glob("*.json")] == ["blas-kept.json"]


@linux
def test_a_warm_preload_starts_no_program_and_writes_nothing(cache: Path) -> None:
    code = """
import sys
started = []
sys.addaudithook(lambda event, args: event == "subprocess.Popen" and started.append(str(args[1])))
import mlx_parallm.cpu.blas as blas
answer = {"source": blas.info().source, "started": started}
"""

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}

    run(code, cache)
    before = times()
    answer, _ = run(code, cache)
    assert answer["source"] != "none"
    assert answer["started"] == []
    assert times() == before != {}
