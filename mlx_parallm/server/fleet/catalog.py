"""Which models a server has: those that were named, and those in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from mlx_parallm.models.sources.sources import (
    BUNDLED,
    BUNDLED_DRAFT,
    BUNDLED_FOLDER,
    BUNDLED_VISION,
)
from mlx_parallm.settings import Settings, SettingsError

_WEIGHTS = (".safetensors", ".gguf", ".npz", ".bin")


@dataclass(frozen=True, slots=True)
class Entry:
    """One model that can be loaded. pinned: it is loaded at start and never unloaded."""

    name: str
    path: str
    pinned: bool = False

    @property
    def bytes_on_disk(self) -> int:
        """Of its weights; 0 where they are not here yet."""
        place = _place_of(self.path)
        files = place.glob("*") if place.is_dir() else [place]
        return sum(f.stat().st_size for f in files if f.suffix in _WEIGHTS and f.is_file())


def _place_of(path: str) -> Path:
    """Where a model's files lie, without asking anybody; nowhere, where that is not known."""
    if path in (BUNDLED, BUNDLED_DRAFT, BUNDLED_VISION):
        return BUNDLED_FOLDER.parent / path
    place = Path(path).expanduser()
    if place.exists() or path.count("/") != 1 or ":" in path:
        return place
    with suppress(HFValidationError):
        if isinstance(found := try_to_load_from_cache(path, "config.json"), str):
            return Path(found).parent
    return place


def is_fleet(settings: Settings) -> bool:
    """Whether there may be several models."""
    return bool(settings.also_serve) or settings.models_dir is not None


def entries_of(settings: Settings) -> list[Entry]:
    """Every model of the settings, the first one first.

    Raises:
        SettingsError: the folder cannot be read, a pinned model is none of them, or two have
            the same name.
    """
    first = Entry(settings.model_names[0], settings.model_path)
    found = [first, *(Entry(path, path) for path in settings.also_serve)]
    if settings.models_dir is not None:
        found += _in_folder(Path(settings.models_dir).expanduser())
    by_name = {entry.name: entry for entry in found}
    if len(by_name) < len(found):
        raise SettingsError("two of the models have the same name")
    for name in settings.pin_model:
        if name not in by_name:
            raise SettingsError(
                f"--pin-model {name}: no such model; there are {', '.join(by_name)}"
            )
        by_name[name] = replace(by_name[name], pinned=True)
    return list(by_name.values())


def _in_folder(folder: Path) -> Iterator[Entry]:
    """A model for each folder with a config.json, and for each GGUF file; owner/name as well."""
    if not folder.is_dir():
        raise SettingsError(f"--models-dir {folder}: no such folder")
    for place in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        if (place / "config.json").is_file() or place.suffix == ".gguf":
            yield Entry(str(place.relative_to(folder)), str(place))


def settings_for(settings: Settings, entry: Entry) -> Settings:
    """The settings of one model's own server. What is kept on disk has a folder of its own."""
    own = entry.name.replace("/", "--")
    is_first = entry.path == settings.model_path
    names = settings.served_model_name if is_first else ()
    return replace(
        settings,
        model_path=entry.path,
        served_model_name=names or (entry.name,),
        also_serve=(),
        models_dir=None,
        pin_model=(),
        # Beside the first model: it answers what names no model in JSON.
        transcription_model=settings.transcription_model if is_first else None,
        prefix_cache_dir=_below(settings.prefix_cache_dir, own),
        memory_dir=_below(settings.memory_dir, own),
        response_store=settings.response_store and f"{settings.response_store}.{own}",
    )


def _below(folder: str | None, name: str) -> str | None:
    return None if folder is None else str(Path(folder).expanduser() / name)
