"""Loads what makes a model see: mlx-vlm's processor and tower for a checkpoint."""

from __future__ import annotations

import hashlib
import importlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from PIL import Image
from transformers.utils import logging as told

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.vision.blindness import PROCESSOR_FILES
from mlx_parallm.models.vision.families import Family, family_of
from mlx_parallm.models.vision.tower import Tower
from mlx_parallm.models.vision.vision import Vision


def load_vision(
    folder: Path,
    config: dict[str, Any],
    convert: Callable[[Any], None],
    *,
    trust_remote_code: bool = False,
) -> Vision:
    """The eyes of the model in a folder; see why_blind.

    Args:
        convert: gives weights the type that computes.
        trust_remote_code: the tokenizer may be code in the folder.

    Raises:
        ModelLoadError: in one sentence, what is missing or wrong.
    """
    family = family_of(config)
    assert family is not None
    try:
        model = _load_model(folder, family)
        processor = _load_processor(folder, family, trust_remote_code)
    except Exception as error:
        raise ModelLoadError(
            f"{folder}: what the model sees with cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    feature_id = _feature_id(config, model, processor)
    text = model.config.text_config
    width = int(text["hidden_size"] if isinstance(text, dict) else text.hidden_size)
    depth = len(config["vision_config"].get("deepstack_visual_indexes") or ())
    tower = Tower(model, feature_id, width, deepstack=depth > 0, scaled=family.scaled)
    convert(model)
    mx.eval(model.parameters())
    return Vision(
        family,
        processor,
        tower,
        _fingerprint(folder, model),
        feature_id,
        {**config, **config.get("text_config", {})},
        merge=int(config["vision_config"].get("spatial_merge_size", 2)),
        depth=depth,
    )


def _load_model(folder: Path, family: Family) -> Any:
    from mlx_vlm.utils import load_model

    with _named(folder.resolve(), family.kind) as place:
        # Lazily: the weights of its language model are never read.
        model = load_model(place, lazy=True)
    for name in ("audio_tower", "embed_audio"):  # its ears
        if hasattr(model, name):
            setattr(model, name, None)
    return model


@contextmanager
def _named(folder: Path, kind: str) -> Iterator[Path]:
    """The folder, with another model_type in its config.json where that is not empty."""
    if not kind:
        yield folder
        return
    with TemporaryDirectory() as made:
        place = Path(made)
        for file in folder.iterdir():
            (place / file.name).symlink_to(file)
        config = json.loads((folder / "config.json").read_text())
        (place / "config.json").unlink()
        (place / "config.json").write_text(json.dumps({**config, "model_type": kind}))
        yield place


def _load_processor(folder: Path, family: Family, trust_remote_code: bool) -> Any:
    """mlx-vlm's own, which needs no torch."""
    module, _, name = family.processor.partition(":")
    kind = getattr(importlib.import_module(f"mlx_vlm.models.{module}"), name)
    level = told.get_verbosity()
    told.set_verbosity_error()  # mlx-vlm passes on an argument that transformers calls deprecated
    try:
        with warnings.catch_warnings():
            # Processors that can hear, too, warn of the settings of their filters.
            warnings.filterwarnings("ignore", module="transformers.audio_utils")
            # An absolute path, or transformers would ask the hub for parts that are not there.
            processor = kind.from_pretrained(
                str(folder.resolve()), trust_remote_code=trust_remote_code
            )
    finally:
        told.set_verbosity(level)
    if hasattr(processor.image_processor, "to_mlx"):
        processor.image_processor.to_mlx = _channels
    return processor


def _channels(image: Image.Image) -> mx.array:
    """(3, height, width) from 0 to 1, as kimi_vl's own, which makes a Python object a pixel."""
    return mx.array(np.asarray(image.convert("RGB"), dtype=np.float32) / 255).transpose(2, 0, 1)


def _feature_id(config: Mapping[str, Any], model: Any, processor: Any) -> int:
    """What config.json says, or mlx-vlm's default for it, or the tokenizer."""
    for known in (config, vars(model.config)):
        for name in ("image_token_index", "image_token_id"):
            if known.get(name) is not None:
                return int(known[name])
    return int(processor.image_token_id)


def _fingerprint(folder: Path, model: Any) -> bytes:
    """Of everything that features depend on besides the picture. Reads the tower's weights."""
    hashed = hashlib.blake2b(version("mlx-vlm").encode(), digest_size=32)
    for name in PROCESSOR_FILES:
        file = folder / name
        hashed.update(json.dumps(file.read_text() if file.is_file() else None).encode())
    for name, array in sorted(dict(tree_flatten(model.parameters())).items()):
        hashed.update(f"{name} {array.dtype} {array.shape}".encode())
        hashed.update(np.array(array.reshape(-1).view(mx.uint8), copy=False).data)
    return hashed.digest()
