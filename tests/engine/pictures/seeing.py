"""Engines of tiny models that see, and sequences with pictures for them."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.sequence import SamplingParams, Sequence
from mlx_parallm.models.loader import load_model
from mlx_parallm.models.vision.picture import Picture
from mlx_parallm.models.vision.vision import Vision
from tests.models.vision.tiny_vision import SPECS, folder_of
from tests.waiting import PATIENCE_S

PICTURE = "{picture}"
"""Stands for a picture in a text."""


def engine_of(family: str, **config: Any) -> Engine:
    """A running engine; whoever makes it stops it."""
    path = str(folder_of(family))
    settings = {"max_batch_size": 8, "kv_cache_memory": 64 << 20, **config}
    engine = Engine(lambda: load_model(path), EngineConfig(**settings))
    engine.start()
    engine.wait_ready(PATIENCE_S)
    return engine


def vision_of(engine: Engine) -> Vision:
    assert engine.loaded is not None and engine.loaded.vision is not None
    return engine.loaded.vision


def with_placeholders(family: str, text: str) -> str:
    """The text as the family's template would have written it."""
    return text.replace(PICTURE, SPECS[family]["image"])


def sequence_of(
    engine: Engine, family: str, text: str, pictures: Items[Picture], **settings: Any
) -> Sequence:
    """A sequence that is to go on with a text and its pictures."""
    assert engine.loaded is not None
    expanded, prepared = with_placeholders(family, text), []
    if pictures:
        prepared = [vision_of(engine).prepare(picture) for picture in pictures]
        expanded = vision_of(engine).expand(expanded, prepared)
    ids = list(engine.loaded.tokenizer.encode(expanded, add_special_tokens=False))
    params = SamplingParams(**{"max_tokens": 8, "temperature": 0.0, **settings})
    media = vision_of(engine).media(ids, prepared) if prepared else None
    return Sequence(ids, params, media=media)
