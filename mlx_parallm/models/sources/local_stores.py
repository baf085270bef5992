"""Models that other programs have on this machine: Ollama, LM Studio, and the hub's cache.

Ollama: `<models>/manifests/<registry>/<owner>/<name>/<tag>` is JSON whose layer of the type
"application/vnd.ollama.image.model" names a GGUF file in `<models>/blobs`. LM Studio:
`<models>/<publisher>/<repository>/*.gguf`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_parallm.errors import ModelLoadError

OLLAMA, LM_STUDIO = "ollama:", "lmstudio:"
PREFIXES = (OLLAMA, LM_STUDIO)

_MODEL_LAYER = "application/vnd.ollama.image.model"
_WEIGHTS = ("*.safetensors", "*.gguf", "*.bin")


@dataclass(frozen=True, slots=True)
class LocalModel:
    """One model. path: for --model-path. file: its GGUF file or its folder. nbytes: on disk."""

    path: str
    file: Path
    nbytes: int


def local_models() -> list[LocalModel]:
    """All that are there, sorted by their path."""
    found = [*_ollama(), *_lm_studio(), *_hub_cache()]
    return sorted(found, key=lambda model: model.path)


def find_local(path: str) -> Path:
    """The GGUF file of "ollama:llama3.2:1b" or "lmstudio:publisher/repository".

    Raises:
        ModelLoadError: it is not there; names what is.
    """
    kind = next(prefix for prefix in PREFIXES if path.startswith(prefix))
    models = list(_ollama() if kind == OLLAMA else _lm_studio())
    wanted = path.casefold()
    for model in models:
        if wanted in (model.path.casefold(), model.path.casefold().removesuffix(":latest")):
            return model.file
    near = [model for model in models if model.path.casefold().startswith(wanted)]
    if len(near) == 1:
        return near[0].file
    names = ", ".join(model.path for model in (near or models)) or "none"
    raise ModelLoadError(f"{path}: there is no such model on this machine; there are: {names}")


def _ollama() -> Iterator[LocalModel]:
    root = Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")
    manifests = root / "manifests"
    for manifest in sorted(manifests.glob("*/*/*/*")):
        blob = _ollama_blob(root, manifest)
        if blob is not None:
            owner, name, tag = manifest.parts[-3:]
            named = name if owner == "library" else f"{owner}/{name}"
            yield LocalModel(f"{OLLAMA}{named}:{tag}", blob, blob.stat().st_size)


def _ollama_blob(root: Path, manifest: Path) -> Path | None:
    """The file with a manifest's weights; None where the manifest or the file is broken."""
    try:
        layers = json.loads(manifest.read_text(encoding="utf-8"))["layers"]
        digest = next(layer["digest"] for layer in layers if layer["mediaType"] == _MODEL_LAYER)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None
    blob = root / "blobs" / str(digest).replace(":", "-")
    return blob if blob.is_file() else None


def _lm_studio() -> Iterator[LocalModel]:
    home = Path.home()
    for root in (home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"):
        for file in sorted(root.glob("*/*/*.gguf")):
            later_part = "-of-" in file.name and "-00001-of-" not in file.name
            if later_part or "mmproj" in file.name:
                continue
            name = f"{LM_STUDIO}{file.relative_to(root).as_posix()}"
            yield LocalModel(name, file, file.stat().st_size)


def _hub_cache() -> Iterator[LocalModel]:
    from huggingface_hub.constants import HF_HUB_CACHE

    for folder in sorted(Path(HF_HUB_CACHE).glob("models--*")):
        snapshots = [place for place in folder.glob("snapshots/*") if any(_weights(place))]
        if snapshots:
            newest = max(snapshots, key=lambda place: place.stat().st_mtime)
            name = folder.name.removeprefix("models--").replace("--", "/")
            size = sum(file.stat().st_size for file in _weights(newest))
            yield LocalModel(name, newest, size)


def _weights(folder: Path) -> Iterator[Path]:
    for pattern in _WEIGHTS:
        yield from (file for file in folder.rglob(pattern) if file.exists())
