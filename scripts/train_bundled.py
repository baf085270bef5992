#!/usr/bin/env python3
"""Make the bundled model from nothing: corpus, tokenizer, target and draft.

    python scripts/train_bundled.py                 # about 90 minutes on two CPU cores
    python scripts/train_bundled.py --quick         # a few minutes; counts and talks a little

The text is written by the templates in scripts/bundled. A training that was stopped goes on
where its last checkpoint (in --work) was; the same seed makes the same batches.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx_parallm  # noqa: F401  first: gives MLX a fast BLAS before it is loaded

sys.path.insert(0, str(Path(__file__).parent))

from bundled import model as models
from bundled.batches import Batch, make_batch
from bundled.corpus import EARLY, FACTS, QUICK_TASKS, TASKS, Stage, Task, corpus, draw_task
from bundled.fast_ops import use_fast_ops
from bundled.knowledge import WORDS
from bundled.tokenizer import (
    encode,
    sample_texts,
    save_tokenizer,
    train_tokenizer,
    twins,
)
from bundled.tools import TOOL_NAMES
from bundled.training import Plan, train
from tokenizers import Tokenizer

# One token each, with a space before it and without.
SINGLE = (*WORDS, *TOOL_NAMES)

ROOT = Path(__file__).resolve().parent.parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "mlx_parallm/models/bundled")
    parser.add_argument("--work", type=Path, default=ROOT / ".train", help="checkpoints")
    parser.add_argument("--quick", action="store_true", help="a few minutes instead of 90")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, help="steps of the target (default 13000)")
    parser.add_argument("--minutes", type=float, help="at most so long for the target")
    parser.add_argument("--only", choices=("target", "draft"), help="train one of the two")
    parser.add_argument("--fresh", action="store_true", help="ignore earlier checkpoints")
    return parser.parse_args()


def get_tokenizer(path: Path, seed: int) -> Tokenizer:
    if path.exists():
        return Tokenizer.from_file(str(path))
    tokenizer = train_tokenizer(sample_texts(corpus(seed, 20_000)), SINGLE, models.VOCABULARY)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer


# Length of the rows of a batch -> how often; batches hold the same number of tokens.
_LENGTHS = {256: 0.4, 512: 0.54, 768: 0.04, 1024: 0.01, 2048: 0.01}
# Tokens of a batch.
_TOKENS = 2048


def batch_maker(
    tokenizer: Tokenizer, tasks: Sequence[Task], seed: int, tokens: int
) -> Callable[[int, int], Batch]:
    """next_batch for `train`: every step has its own generator, so that a step is repeatable."""

    def next_batch(step: int, level: int) -> Batch:
        rng = random.Random(f"{seed} {step}")
        length = rng.choices(list(_LENGTHS), list(_LENGTHS.values()))[0] if level > EARLY else 256
        stage = Stage(level, length)
        return make_batch(
            rng,
            lambda rng: draw_task(tasks, rng, stage),
            lambda sample: encode(tokenizer, sample),
            rows=max(tokens // length, 1),
            length=length,
        )

    return next_batch


def make(kind: str, plan: Plan, tokenizer: Tokenizer, options: argparse.Namespace) -> None:
    size = models.TARGET if kind == "target" else models.DRAFT
    config = models.config(size, tokenizer)
    model = models.build(config, twins(tokenizer, SINGLE), options.seed)
    print(f"{kind}: {models.parameter_count(model):,} parameters")
    folder = options.work / kind
    if options.fresh and (folder / "state.safetensors").exists():
        (folder / "state.safetensors").unlink()
    tasks = QUICK_TASKS if options.quick else TASKS
    levels = 1 if options.quick else len(FACTS)
    next_batch = batch_maker(tokenizer, tasks, options.seed, _TOKENS)
    train(model, plan, next_batch, [task.name for task in tasks], levels, folder, kind)
    out = options.out if kind == "target" else options.out / "draft"
    models.save_model(model, config, out)
    save_tokenizer(tokenizer, out, models.CONTEXT)


def main() -> None:
    options = arguments()
    use_fast_ops()
    started = time.monotonic()
    tokenizer = get_tokenizer(options.work / "tokenizer.json", options.seed)
    steps = options.steps or (300 if options.quick else 13_000)
    minutes = options.minutes or (5 if options.quick else 75)
    plans = {"target": Plan(steps, minutes), "draft": Plan(steps, minutes / 5)}
    for kind, plan in plans.items():
        if options.only in (None, kind):
            make(kind, plan, tokenizer, options)
    print(f"done in {(time.monotonic() - started) / 60:.1f} minutes: {options.out}")


if __name__ == "__main__":
    main()
