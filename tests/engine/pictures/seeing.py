"""Engines of tiny models that see, and sequences with pictures and videos for them."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.sequence import SamplingParams, Sequence
from mlx_parallm.models.loader import load_model
from mlx_parallm.models.vision.picture import Picture
from mlx_parallm.models.vision.video import Video
from mlx_parallm.models.vision.vision import Vision
from tests.models.vision.tiny_vision import SPECS, folder_of
from tests.waiting import PATIENCE_S

PICTURE = "{picture}"
"""Stands for a picture in a text."""
VIDEO = "{video}"
"""Stands for a video."""


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
    spec = SPECS[family]
    text = text.replace(PICTURE, spec["image"])
    return text.replace(VIDEO, str(spec.get("video", spec["image"])))


def sequence_of(
    engine: Engine, family: str, text: str, shown: Items[Picture | Video], **settings: Any
) -> Sequence:
    """A sequence that is to go on with a text and its pictures and videos."""
    assert engine.loaded is not None
    expanded, prepared = with_placeholders(family, text), []
    if shown:
        vision = vision_of(engine)
        prepared = [
            vision.prepare_video(one) if isinstance(one, Video) else vision.prepare(one)
            for one in shown
        ]
        expanded = vision_of(engine).expand(expanded, prepared)
    ids = list(engine.loaded.tokenizer.encode(expanded, add_special_tokens=False))
    params = SamplingParams(**{"max_tokens": 8, "temperature": 0.0, **settings})
    media = vision_of(engine).media(ids, prepared) if prepared else None
    return Sequence(ids, params, media=media)
