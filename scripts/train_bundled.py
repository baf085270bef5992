#!/usr/bin/env python3
"""Make the bundled model from nothing: corpus, tokenizer, target and draft.

    python scripts/train_bundled.py                 # about 90 minutes on two CPU cores
    python scripts/train_bundled.py --quick         # a few minutes; counts and talks a little
    python scripts/train_bundled.py --continue-from mlx_parallm/models/bundled --out new

The first run teaches what the tasks of TASKS are, one with `--continue-from` those of LATER_TASKS
on top of it, in less time: forced calls, JSON, thinking and typed questions.

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
from typing import Any

import mlx_parallm  # noqa: F401  first: gives MLX a fast BLAS before it is loaded

sys.path.insert(0, str(Path(__file__).parent))

from bundled import model as models
from bundled.batches import Batch, make_batch
from bundled.corpus import (
    EARLY,
    FACTS,
    LATER_TASKS,
    QUICK_TASKS,
    TASKS,
    Stage,
    Task,
    corpus,
    draw_task,
)
from bundled.fast_ops import use_fast_ops
from bundled.knowledge import WORDS
from bundled.tokenizer import (
    LATER_MARKS,
    add_marks,
    encode,
    sample_texts,
    save_tokenizer,
    train_tokenizer,
    twins,
)
from bundled.tools import TOOL_NAMES
from bundled.training import Plan, train
from mlx_lm.models.llama import Model
from tokenizers import Tokenizer

# One token each, with a space before it and without.
SINGLE = (*WORDS, *TOOL_NAMES)

# Where in a folder each of the two is.
_PART = {"target": "", "draft": "draft"}

ROOT = Path(__file__).resolve().parent.parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "mlx_parallm/models/bundled")
    parser.add_argument("--work", type=Path, default=ROOT / ".train", help="checkpoints")
    parser.add_argument("--quick", action="store_true", help="a few minutes instead of 90")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, help="steps of the target (default 13000)")
    parser.add_argument("--minutes", type=float, help="at most so long for the target")
    parser.add_argument(
        "--continue-from", type=Path, metavar="FOLDER", help="go on with this model and its draft"
    )
    parser.add_argument("--only", choices=("target", "draft"), help="train one of the two")
    parser.add_argument("--fresh", action="store_true", help="ignore earlier checkpoints")
    return parser.parse_args()


def get_tokenizer(path: Path, seed: int, earlier: Path | None) -> Tokenizer:
    if earlier is not None:
        tokenizer = Tokenizer.from_file(str(earlier / "tokenizer.json"))
        add_marks(tokenizer, LATER_MARKS)
        return tokenizer
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


def first_plans(options: argparse.Namespace) -> dict[str, Plan]:
    """Of a training from nothing."""
    steps = options.steps or (300 if options.quick else 13_000)
    minutes = options.minutes or (5 if options.quick else 75)
    return {"target": Plan(steps, minutes), "draft": Plan(steps, minutes / 5)}


def later_plans(options: argparse.Namespace) -> dict[str, Plan]:
    """Of one that goes on: shorter and slower, so that what was learned stays."""
    steps, minutes = options.steps or 8000, options.minutes or 63
    rates = {"matrix_rate": 0.003, "other_rate": 7.5e-4}
    return {"target": Plan(steps, minutes, **rates), "draft": Plan(steps, minutes / 5, **rates)}


def begin(
    kind: str, tokenizer: Tokenizer, seed: int, earlier: Path | None
) -> tuple[dict[str, Any], Model]:
    """(config.json, the model as it is before the first step)"""
    if earlier is not None:
        folder = earlier / _PART[kind]
        config = models.earlier_config(folder, tokenizer)
        return config, models.continued(config, folder)
    config = models.config(models.TARGET if kind == "target" else models.DRAFT, tokenizer)
    return config, models.build(config, twins(tokenizer, SINGLE), seed)


def course(options: argparse.Namespace) -> tuple[Sequence[Task], tuple[int, int]]:
    """(tasks, the level that they begin at and how many levels there are)"""
    if options.quick:
        return QUICK_TASKS, (0, 1)
    if options.continue_from is not None:
        return LATER_TASKS, (len(FACTS) - 1, len(FACTS))
    return TASKS, (0, len(FACTS))


def make(kind: str, plan: Plan, tokenizer: Tokenizer, options: argparse.Namespace) -> None:
    config, model = begin(kind, tokenizer, options.seed, options.continue_from)
    print(f"{kind}: {models.parameter_count(model):,} parameters")
    folder = options.work / (kind if options.continue_from is None else f"later_{kind}")
    if options.fresh and (folder / "state.safetensors").exists():
        (folder / "state.safetensors").unlink()
    tasks, levels = course(options)
    next_batch = batch_maker(tokenizer, tasks, options.seed, _TOKENS)
    train(model, plan, next_batch, [task.name for task in tasks], levels, folder, kind)
    out = options.out / _PART[kind]
    models.save_model(model, config, out)
    save_tokenizer(tokenizer, out, models.CONTEXT)


def main() -> None:
    options = arguments()
    use_fast_ops()
    started = time.monotonic()
    earlier = options.continue_from
    tokenizer = get_tokenizer(options.work / "tokenizer.json", options.seed, earlier)
    plans = first_plans(options) if earlier is None else later_plans(options)
    for kind, plan in plans.items():
        if options.only in (None, kind):
            make(kind, plan, tokenizer, options)
    print(f"done in {(time.monotonic() - started) / 60:.1f} minutes: {options.out}")


if __name__ == "__main__":
    main()
