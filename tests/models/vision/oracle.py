"""What mlx-vlm's own model says about a prompt with pictures, one request alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from mlx_parallm.models.vision.activations import set_activations
from mlx_parallm.models.vision.checkpoints import for_tower
from mlx_parallm.models.vision.families import FAMILIES, family_of
from mlx_parallm.models.vision.picture import Picture
from mlx_parallm.models.vision.table import mend_tables
from mlx_parallm.models.vision.video import Video
from tests.models.vision.tiny_vision import SPECS, folder_of

_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Answer:
    """A greedy answer.

    Attributes:
        ids: the expanded prompt.
        scores: log-probability of each of its tokens but the first.
        tokens, logprobs: of the answer.
    """

    ids: list[int]
    scores: list[float]
    tokens: list[int]
    logprobs: list[float]


@cache
def _model(family: str) -> Any:
    from mlx_vlm.utils import load_model

    # With the same weights, under the name by which mlx-vlm knows it.
    folder = folder_of(SPECS[family].get("twin", family))
    model = load_model(folder)
    config = json.loads((folder / "config.json").read_text())
    own = family_of(config)
    assert own is not None
    set_activations(model, for_tower(config, own))  # mlx-vlm's are not always transformers'
    mend_tables(model)  # shown by test_table.py
    return model


def answer(
    family: str,
    processor: Any,
    text: str,
    pictures: Sequence[Picture],
    count: int,
    videos: Sequence[Video] = (),
) -> Answer:
    """Its first `count` tokens.

    Args:
        processor: of the family, also mlx-vlm's.
        text: with a placeholder for each picture, and each video that is none of pictures.
    """
    from mlx_vlm.models.cache import make_prompt_cache

    model = _model(family)
    settings: dict[str, Any] = (
        {} if FAMILIES[family.partition(":")[0]].bare_call else {"add_special_tokens": False}
    )
    if pictures:
        settings["images"] = [Image.fromarray(picture.pixels) for picture in pictures]
    if videos:
        settings |= _of_videos(family, videos)
    made = dict(processor(text=[text], **settings))
    given = {name: _as_array(value) for name, value in made.items()}
    ids, pixels = given["input_ids"], given.get("pixel_values")
    more = {k: v for k, v in given.items() if k not in (*_OF_TEXT, "pixel_values")}
    found = model.get_input_embeddings(ids, pixels, mask=mx.ones(ids.shape, mx.int32), **more)
    features = {k: v for k, v in found.to_dict().items() if v is not None}
    held = make_prompt_cache(model.language_model)
    if family == "gemma3":
        # mlx-vlm's own mask lets text look ahead, too; transformers' does not.
        features["mask"] = _mask(np.array(ids)[0] == model.config.image_token_index)
    if family == "gemma4:larger":
        _look_ahead_in_windows(model, np.array(ids)[0] == model.config.image_token_id)
    features.pop("attention_mask_4d", None)
    rows = _logprobs(model.language_model(ids, cache=held, **features, **more).logits[0])
    prompt = np.array(ids).reshape(-1).tolist()
    scores = [float(rows[place, token]) for place, token in enumerate(prompt[1:])]
    following = {} if found.rope_deltas is None else {"rope_deltas": found.rope_deltas}
    row, tokens, logprobs = rows[-1], [], []
    for _ in range(count):
        tokens.append(int(row.argmax()))
        logprobs.append(float(row[tokens[-1]]))
        step = model.language_model(mx.array([tokens[-1:]]), cache=held, **following)
        row = _logprobs(step.logits[0])[-1]
    return Answer(prompt, scores, tokens, logprobs)


def _as_array(value: Any) -> Any:
    """What a processor made; pictures of different sizes are a list."""
    if isinstance(value, list) and len({np.shape(item) for item in value}) > 1:
        return [mx.array(np.array(item)) for item in value]
    return mx.array(np.array(value))


def _look_ahead_in_windows(model: Any, is_picture: np.ndarray) -> None:
    """gemma4's as in transformers: mlx-vlm's own let all layers look ahead, and far back."""
    text = model.language_model.model

    def masks(hidden: mx.array, held: Any, types: Any = None) -> list[Any]:
        found: list[Any] = type(text)._make_masks(text, hidden, held, None)
        if hidden.shape[1] == 1:
            return found
        place = mx.arange(hidden.shape[1])
        seen = _mask(is_picture) & (place > place[:, None] - text.window_size)
        kinds = [layer.layer_type for layer in text.layers]
        pairs = zip(kinds, found, strict=True)
        return [seen if kind == "sliding_attention" else mask for kind, mask in pairs]

    text._make_masks = masks


def _of_videos(family: str, videos: Sequence[Video]) -> dict[str, Any]:
    """What a processor is given of them."""
    frames = [np.stack([frame.pixels for frame in video.frames]) for video in videos]
    if not family.startswith("qwen3"):
        return {"videos": frames}
    # A clock of 100 frames a second, which every time of these tests is on.
    told = [
        {"frames_indices": [round(100 * time) for time in video.times], "fps": 100.0}
        for video in videos
    ]
    return {"videos": frames, "video_metadata": told}


def _mask(is_picture: np.ndarray) -> mx.array:
    """(1, 1, T, T) bool: what is before, and all of the picture that a token is in."""
    begins = is_picture & ~np.roll(is_picture, 1)
    picture = np.where(is_picture, np.cumsum(begins), 0)
    same = (picture[:, None] == picture[None]) & is_picture[:, None]
    return mx.array((np.tril(np.ones(same.shape, dtype=bool)) | same)[None, None])


def _logprobs(logits: mx.array) -> np.ndarray:
    logits = logits.astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
