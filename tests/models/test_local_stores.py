"""Models that Ollama, LM Studio and the hub's cache hold are found by their names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.loader import load_model
from mlx_parallm.models.sources import local_stores
from mlx_parallm.options.loading import load_settings
from tests.models import tiny_gguf


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a model of each program."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    file = tiny_gguf.write(tmp_path / "tiny.gguf", "llama")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    _ollama(tmp_path / ".ollama" / "models", file, digest)
    studio = tmp_path / ".lmstudio" / "models" / "publisher" / "Tiny-GGUF"
    studio.mkdir(parents=True)
    (studio / "tiny-Q8_0.gguf").write_bytes(file.read_bytes())
    (studio / "mmproj-tiny.gguf").write_bytes(b"x")
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"x" * 7)
    return tmp_path


def _ollama(root: Path, file: Path, digest: str) -> None:
    (root / "blobs").mkdir(parents=True)
    (root / "blobs" / f"sha256-{digest}").write_bytes(file.read_bytes())
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:0"},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"},
    ]
    for owner, name, tag, text in (
        ("library", "tiny", "latest", json.dumps({"layers": layers})),
        ("somebody", "tiny", "1b", json.dumps({"layers": layers})),
        ("library", "broken", "latest", "{"),
        ("library", "gone", "latest", json.dumps({"layers": [layers[0]]})),
    ):
        manifest = root / "manifests" / "registry.ollama.ai" / owner / name / tag
        manifest.parent.mkdir(parents=True)
        manifest.write_text(text)


def test_everything_is_listed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        load_settings(["--list-local"], {})
    assert end.value.code == 0
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "lmstudio:publisher/Tiny-GGUF/tiny-Q8_0.gguf",
        "ollama:somebody/tiny:1b",
        "ollama:tiny:latest",
        "org/name",
    ]


@pytest.mark.parametrize(
    "path",
    [
        "ollama:tiny",
        "ollama:tiny:latest",
        "ollama:somebody/tiny:1b",
        "lmstudio:publisher/tiny-gguf",
        "lmstudio:publisher/Tiny-GGUF/tiny-Q8_0.gguf",
    ],
)
def test_they_are_found_by_name(home: Path, path: str) -> None:
    assert local_stores.find_local(path).read_bytes() == (home / "tiny.gguf").read_bytes()


def test_one_of_them_is_served_as_its_file_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_PARALLM_CACHE", str(home / "cache"))
    assert (
        load_model("ollama:tiny").num_parameters
        == load_model(str(home / "tiny.gguf")).num_parameters
    )


def test_what_is_not_there_is_said_with_what_is(home: Path) -> None:
    with pytest.raises(ModelLoadError, match="ollama:somebody/tiny:1b"):
        local_stores.find_local("ollama:nope")


def test_a_machine_without_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(SystemExit):
        load_settings(["--list-local"], {})
    assert "no models" in capsys.readouterr().out
