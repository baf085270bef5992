#!/usr/bin/env python3
"""Make the bundled model that sees: draws pictures, trains a tower, grows the text model.

    python scripts/train_bundled_vision.py            # under 40 minutes on two CPU cores
    python scripts/train_bundled_vision.py --quick    # a few minutes; names colours

First the tower learns to name what is in a picture, without the language model. Then the bundled
text model gets new columns, heads and neurons beside its own (bundled_vision/grown.py), which learn
to answer questions about what the tower sees. The text model itself is not touched: for text alone
the result computes what it computes.

A training that was stopped goes on where its last checkpoint (in --work) was.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import mlx_parallm  # noqa: F401  first: gives MLX a fast BLAS before it is loaded

sys.path.insert(0, str(Path(__file__).parent))

import mlx.core as mx
import numpy as np
from bundled.fast_ops import use_fast_ops
from bundled.training import Plan
from bundled_vision.grown import Grown, grown_config
from bundled_vision.lessons import (
    MARKS,
    add_picture_marks,
    alike,
    lesson,
    make_batch,
    picture_token,
)
from bundled_vision.pool import Pool, make_pool
from bundled_vision.probes import labels
from bundled_vision.saving import save
from bundled_vision.tower import EDGE, Tower, TowerSize, patches
from bundled_vision.training import Parts, Reader, Watcher, fit
from mlx_lm.models import llama
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
_SIZE = TowerSize()
# Pictures of a step, in each of the two parts; each of two cores has half of them.
_WATCHED, _READ = 128, 32
# Lessons of a step are about equally long: of so many times as many, a piece.
_PIECES = 3
# How often each kind of picture is asked about: digits and counts take longest.
_SHARES = {
    "one": 14,
    "several": 32,
    "two": 11,
    "digit": 28,
    "number": 5,
    "word": 3,
    "bars": 5,
    "blank": 2,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text-model", type=Path, default=ROOT / "mlx_parallm/models/bundled")
    parser.add_argument("--out", type=Path, default=ROOT / "mlx_parallm/models/bundled/vision")
    parser.add_argument("--work", type=Path, default=ROOT / ".train/vision", help="checkpoints")
    parser.add_argument("--quick", action="store_true", help="a few minutes")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=40_000, help="how many are drawn")
    parser.add_argument("--tower-steps", type=int, default=2400)
    parser.add_argument("--steps", type=int, default=2200, help="with the language model")
    options = parser.parse_args()
    if options.quick:
        options.pictures, options.tower_steps, options.steps = 4000, 200, 100
    return options


def watch(options: argparse.Namespace, pool: Pool, text_width: int) -> Tower:
    """The first part: a tower that can name what it sees."""

    def part(rng: random.Random) -> tuple[mx.array, mx.array]:
        scenes, pictures = pool.some(rng, _WATCHED // 2)
        return mx.array(patches(pictures)), mx.array(labels(scenes))

    def draw(rng: random.Random) -> Parts:
        return part(rng), part(rng)

    mx.random.seed(options.seed)
    watcher = Watcher(Tower(_SIZE, text_width), text_width)
    plan = Plan(options.tower_steps, 20.0, matrix_rate=0.02, other_rate=2e-3)
    fit(watcher, plan, draw, options.work / "tower", "tower")
    return watcher.tower


def read(
    options: argparse.Namespace, pool: Pool, tokenizer: Tokenizer, tower: Tower, reader: Reader
) -> None:
    """The second part: answers in words."""
    image, vocabulary = picture_token(tokenizer), tokenizer.get_vocab_size()

    def draw(rng: random.Random) -> Parts:
        scenes, pictures = pool.some(rng, _PIECES * _READ, _SHARES)
        lessons = [lesson(rng, tokenizer, scene) for scene in scenes]
        chosen = alike(rng, lessons, _PIECES)
        seen = tower.seen(mx.array(patches(pictures[chosen])))
        halves = slice(0, _READ // 2), slice(_READ // 2, _READ)
        batches = [
            make_batch([lessons[place] for place in chosen[half]], image, vocabulary)
            for half in halves
        ]
        return (batches[0], seen[halves[0]]), (batches[1], seen[halves[1]])

    plan = Plan(options.steps, 38.0, matrix_rate=0.02, other_rate=3e-3)
    fit(reader, plan, draw, options.work / "words", "words")


def old_weights(folder: Path) -> dict[str, mx.array]:
    loaded: Any = mx.load(str(folder / "model.safetensors"))
    return {name: weight.astype(mx.float32) for name, weight in loaded.items()}


def at_the_scale_of(table: mx.array, tower: Tower, pictures: np.ndarray) -> None:
    """Let the tower's tokens be about as large as the embeddings of words."""
    seen = tower(mx.array(patches(pictures)))
    ratio = mx.sqrt((table**2).mean() / (seen**2).mean())
    tower.proj.weight = tower.proj.weight * ratio
    mx.eval(tower.proj.weight)


def main() -> None:
    options = arguments()
    use_fast_ops()
    started = time.monotonic()
    old = json.loads((options.text_model / "config.json").read_text())
    text = grown_config(old, len(MARKS))
    tokenizer = Tokenizer.from_file(str(options.text_model / "tokenizer.json"))
    add_picture_marks(tokenizer)
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / f"pictures_{options.seed}_{options.pictures}.npy"
    pool = make_pool(options.seed, options.pictures, EDGE, kept)
    tower = watch(options, pool, text["hidden_size"])
    weights = old_weights(options.text_model)
    at_the_scale_of(weights["model.embed_tokens.weight"], tower, pool.pictures[:256])
    shell = llama.Model(llama.ModelArgs.from_dict(text))
    grown = Grown(weights, shell, old["pad_token_id"])
    reader = Reader(tower.proj, grown, shell)
    read(options, pool, tokenizer, tower, reader)
    save(options.out, tower, grown, _SIZE, text, tokenizer)
    print(f"done in {(time.monotonic() - started) / 60:.1f} minutes: {options.out}")


if __name__ == "__main__":
    main()
