"""Loads what makes a model see: mlx-vlm's processor and tower for a checkpoint."""

from __future__ import annotations

import hashlib
import importlib
import json
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from PIL import Image
from transformers.utils import logging as told

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.vision.activations import set_activations
from mlx_parallm.models.vision.blindness import PROCESSOR_FILES
from mlx_parallm.models.vision.checkpoints import Weights, for_tower, with_older_weights
from mlx_parallm.models.vision.families import Family, family_of
from mlx_parallm.models.vision.table import mend_tables
from mlx_parallm.models.vision.tower import Tower
from mlx_parallm.models.vision.vision import Vision

Rename = Callable[[Weights], Weights]
_TEXT = "language_model."


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
        model, rename = _load_model(folder, config, family)
        processor = _load_processor(folder, family, trust_remote_code)
    except Exception as error:
        raise ModelLoadError(
            f"{folder}: what the model sees with cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    feature_id = _feature_id(config, model, processor)
    text = model.config.text_config
    width = int(text["hidden_size"] if isinstance(text, dict) else text.hidden_size)
    depth = len(config["vision_config"].get("deepstack_visual_indexes") or ())
    tower = Tower(
        model, feature_id, width, deepstack=depth > 0, scaled=family.scaled, rename=rename
    )
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


def _load_model(folder: Path, config: dict[str, Any], family: Family) -> tuple[Any, Rename]:
    """mlx-vlm's model, and what gives a checkpoint's tensors its names.

    Weights are read lazily, and those of its language model not at all.
    """
    from mlx_vlm.utils import load_model_weights

    given = for_tower(json.loads(json.dumps(config)), family)  # mlx-vlm writes into it
    module, made = _configured(given)
    model = module.Model(made)
    mend_tables(model)
    for name in ("audio_tower", "embed_audio"):  # its ears
        if hasattr(model, name):
            setattr(model, name, None)
    set_activations(model, given)

    def rename(weights: Weights) -> Weights:
        return _renamed(module, made, model, with_older_weights(weights, config))

    weights = rename(_stored(folder))
    wanted = [n for n in dict(tree_flatten(model.parameters())) if not n.startswith(_TEXT)]
    kept = {name: array for name, array in weights.items() if not name.startswith(_TEXT)}
    missing = sorted(set(wanted) - set(kept))
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, {missing[0]} among them")
    return load_model_weights(model, given, kept, folder, lazy=True, strict=False), rename


def _configured(config: dict[str, Any]) -> tuple[Any, Any]:
    """The module of mlx-vlm that has a model, and the model's config."""
    from mlx_vlm.utils import get_model_and_args, update_module_configs

    module, _ = get_model_and_args(config)
    for part in ("text_config", "audio_config"):
        config.setdefault(part, {})
    made = module.ModelConfig.from_dict(config)
    parts = ["text", "vision", "perceiver", "projector", "audio"]
    return module, update_module_configs(made, module, config, parts)  # type: ignore[no-untyped-call]


def _stored(folder: Path) -> dict[str, mx.array]:
    """The tensors of the files that mlx-lm reads, too."""
    found: dict[str, mx.array] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= mx.load(str(file))  # type: ignore[arg-type]
    return found


def _renamed(module: Any, made: Any, model: Any, weights: Weights) -> Weights:
    """By mlx-vlm's names, as its own loader makes them."""
    from mlx_vlm.utils import sanitize_weights

    rename: Any = sanitize_weights
    renamed = dict(rename(model, weights))
    tower = getattr(module, "VisionModel", None)
    return renamed if tower is None else dict(rename(tower, renamed, made.vision_config))


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
