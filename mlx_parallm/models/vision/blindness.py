"""Why a model takes no pictures."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.sources.sources import BUNDLED, BUNDLED_VISION, resolve
from mlx_parallm.models.vision.families import FAMILIES, REFUSED, family_of

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
READS_TEXT = "The served model reads text only; it does not see pictures."
INSTALL = "Install the extra for pictures: pip install 'mlx_parallm[vision]'."

BUNDLED_SEES = f"The bundled model that sees needs an extra. {INSTALL}"


def why_blind(folder: Path, config: dict[str, Any]) -> str:
    """Why a model takes no pictures; empty where it should."""
    if config.get("blindness"):  # of a GGUF file, with what is beside it
        return str(config["blindness"])
    if not config.get("vision_config"):
        return f"{READS_TEXT} {BUNDLED_SEES}" if _could_be_the_seeing_one(folder) else READS_TEXT
    if family_of(config) is None:
        names = ", ".join(sorted(FAMILIES))
        return (
            f"Pictures are not supported for {config.get('model_type')} models; they are for "
            f"{names}."
        )
    if config.get("model_file"):
        return (
            "The served model's config.json names code of its own, which is not run for pictures."
        )
    if not any((folder / name).is_file() for name in PROCESSOR_FILES):
        return (
            "The served model's folder has no preprocessor_config.json, which says how pictures "
            "are prepared for it."
        )
    if find_spec("mlx_vlm") is None:
        return f"The served model can see, but this server cannot. {INSTALL}"
    return ""


def _could_be_the_seeing_one(folder: Path) -> bool:
    """Whether this is the bundled model, and only for want of the extra not the one that sees."""
    seeing = resolve(BUNDLED_VISION) / "config.json"
    return folder == resolve(BUNDLED) and seeing.is_file() and find_spec("mlx_vlm") is None


def check_family(config: dict[str, Any]) -> None:
    """Refuse families that cannot be batched, before anything is loaded.

    Raises:
        ModelLoadError: with the reason.
    """
    model_type = str(config.get("model_type"))
    if model_type in REFUSED:
        raise ModelLoadError(f"{model_type} is not supported: {REFUSED[model_type]}")
