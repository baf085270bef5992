"""Writes checkpoint folders for tests of the loader."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from tests.engine import mock


def write(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, mx.array],
    shards: int = 1,
) -> Path:
    """A folder in Hugging Face's layout, with the byte tokenizer; returns it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    mock.byte_tokenizer()._tokenizer.save_pretrained(folder)
    names = sorted(weights)
    if shards == 1:
        mx.save_safetensors(str(folder / "model.safetensors"), dict(weights))
        return folder
    index: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        mine = {name: weights[name] for name in names[shard::shards]}
        mx.save_safetensors(str(folder / file), mine)
        index |= dict.fromkeys(mine, file)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder
