"""pytorch_model.bin: tensors come back, and nothing in it is run."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.torch_file import load_torch_file
from tests.models import torch_file


def test_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {
        "matrix": mx.random.normal((5, 7)),
        "half": mx.random.normal((4, 2, 3)).astype(mx.float16),
        "brain": mx.random.normal((6, 3)).astype(mx.bfloat16),
        "vector": mx.arange(9, dtype=mx.float32),
        "number": mx.array(2.5),
    }
    torch_file.save(tmp_path / "x.bin", arrays, monkeypatch)
    found = load_torch_file(tmp_path / "x.bin")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert mx.array_equal(found[name], array)


class _Harmful:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def _archive(file: Path, value: Any) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value))
    return file


def test_nothing_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    file = _archive(tmp_path / "x.bin", {"a": _Harmful(mark)})
    with pytest.raises(ModelLoadError, match="mkdir"):
        load_torch_file(file)
    assert not mark.exists()


def test_other_files(tmp_path: Path) -> None:
    junk = tmp_path / "junk.bin"
    junk.write_bytes(b"junk")
    with pytest.raises(ModelLoadError, match="zip archive"):
        load_torch_file(junk)
    with pytest.raises(ModelLoadError, match="zip archive"):
        load_torch_file(tmp_path / "missing.bin")
    with pytest.raises(ModelLoadError, match="something else"):
        load_torch_file(_archive(tmp_path / "x.bin", {"a": 1}))
    with pytest.raises(ModelLoadError, match="something else"):
        load_torch_file(_archive(tmp_path / "y.bin", [1, 2]))


def test_a_tensor_beyond_its_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.bin"
    torch_file.save(file, {"a": mx.zeros((4, 4))}, monkeypatch)
    with zipfile.ZipFile(file) as archive:
        pickled = archive.read("archive/data.pkl")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", bytes(4 * 18))
    with pytest.raises(ModelLoadError, match="beyond"):
        load_torch_file(file)
