#!/usr/bin/env python3
"""How right models are that see, on tiny random ones of every family.

scripts/eval_vision.py                   # all families against mlx-vlm's models
scripts/eval_vision.py --mixed 200       # requests beside others and alone
scripts/eval_vision.py --pictures 1000   # one text, so many pictures, twice
scripts/eval_vision.py --against torch   # all families against transformers' models

The last one asks an interpreter that has torch, torchvision, transformers, pillow and num2words:
--torch-python, or this one. It makes random models, saves them as users' files are, and both
programs load them: once as the families publish theirs, once all as transformers saves it.
"""

from __future__ import annotations

import in_venv  # isort: skip  (starts this script again in .venv)
import mlx_parallm  # noqa: F401  isort: skip  (puts the fast BLAS in place before mlx)

import argparse
import importlib.util
import sys
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from benchlib.table import format_table

sys.path.insert(0, str(in_venv.ROOT))  # the tiny models are the tests' own

from mlx_parallm.engine.sequence import Sequence as Row
from tests.engine.driver import Driver, copy_of
from tests.engine.pictures.seeing import (
    PICTURE,
    engine_of,
    sequence_of,
    vision_of,
    with_placeholders,
)
from tests.models.vision import oracle
from tests.models.vision.tiny_vision import SPECS, picture

from against_torch import rows as torch_rows  # isort: skip  (imports the tests' models)

MIXED = (
    *("gemma3", "gemma4", "gemma4:larger", "glm4v", "idefics3", "kimi_vl", "lfm2_vl"),
    *("llava_onevision", "qwen2_vl", "qwen3_5", "qwen3_vl", "smolvlm"),
)
TEXT = f"user: Here is {PICTURE} and there {PICTURE}\nWhat differs?\nassistant:"
SETTINGS = {"max_tokens": 8, "ignore_eos": True, "logprobs": 0}


def family_row(family: str) -> dict[str, object]:
    """Largest errors of log-probabilities in a prompt with two pictures and a greedy answer."""
    engine = engine_of(family)
    try:
        pictures = [picture(1), picture(2, 40, 64)]
        driver = Driver(engine)
        sequence = sequence_of(engine, family, TEXT, pictures, prompt_logprobs=0, **SETTINGS)
        driver.run(sequence)
        processor, text = vision_of(engine)._processor, with_placeholders(family, TEXT)
        expected = oracle.answer(family, processor, text, pictures, 8)
        scores = [s.logprob for s in driver.prompt_logprobs(sequence) or () if s is not None]
        said = [score.logprob for score in driver.logprobs(sequence)]
        same = driver.tokens(sequence) == expected.tokens
        answers = f"{np.abs(np.array(said) - expected.logprobs).max():.1e}"
        return {
            "family": family,
            "forwards a step": "one, packed" if engine.runner.packs else "two, padded",
            "error in the prompt": f"{np.abs(np.array(scores) - expected.scores).max():.1e}",
            "error in the answer": answers if same else "other tokens",
        }
    finally:
        engine.stop()


def mixed_row(family: str, count: int) -> dict[str, object]:
    """Requests beside each other, and each of them alone on an engine that shares nothing."""
    engine, plain = engine_of(family, max_batch_size=32), engine_of(family, prefix_cache_memory=0)
    rng = np.random.default_rng(0)
    try:
        asked: list[Row] = []
        for _ in range(count):
            seeds = rng.integers(0, 20, rng.integers(0, 3)).tolist()
            words = " and ".join([PICTURE] * len(seeds)) + " so" * int(rng.integers(1, 30))
            text = f"user: {words}\nassistant:"
            drawn = {"seed": len(asked), "temperature": float(rng.choice([0.0, 0.8]))}
            settings = {**SETTINGS, **drawn}
            asked.append(
                sequence_of(engine, family, text, [picture(seed) for seed in seeds], **settings)
            )
        batch, alone, other, worst = Driver(engine).run(*asked), Driver(plain), 0, 0.0
        for sequence in asked:
            twin = copy_of(sequence)
            alone.run(twin)
            other += batch.tokens(sequence) != alone.tokens(twin)
            pairs = zip(batch.logprobs(sequence), alone.logprobs(twin), strict=True)
            worst = max(worst, *(abs(a.logprob - b.logprob) for a, b in pairs))
        return {
            "family": family,
            "requests": count,
            "other tokens": other,
            "largest error": f"{worst:.1e}",
        }
    finally:
        engine.stop()
        plain.stop()


def pictures_row(family: str, count: int) -> dict[str, object]:
    """The same text with other pictures, against an engine without a prefix cache."""
    engine = engine_of(family, max_batch_size=32, prefix_cache_memory=16 << 20)
    plain = engine_of(family, max_batch_size=32, prefix_cache_memory=0)
    text = f"user: {'Look closely. ' * 6}{PICTURE} What is it?\nassistant:"
    try:
        found = []
        for one in (plain, engine, engine):
            asked = [
                sequence_of(one, family, text, [picture(seed)], **SETTINGS) for seed in range(count)
            ]
            driver = Driver(one).run(*asked)
            found.append(np.array([[s.logprob for s in driver.logprobs(a)] for a in asked]))
        wrong = [int((np.abs(f - found[0]).max(axis=1) > 1e-3).sum()) for f in found[1:]]
        cached = engine.stats().cached_tokens
        return {
            "family": family,
            "pictures": count,
            "wrong at first": wrong[0],
            "wrong from the cache": wrong[1],
            "cached tokens": cached,
        }
    finally:
        engine.stop()
        plain.stop()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mixed", type=int, metavar="COUNT")
    parser.add_argument("--pictures", type=int, metavar="COUNT")
    parser.add_argument("--against", choices=["mlx-vlm", "torch"], default="mlx-vlm")
    parser.add_argument("--torch-python", metavar="PATH", help="an interpreter that has torch")
    options = parser.parse_args(arguments)
    if options.against == "torch" and not options.torch_python:
        if importlib.util.find_spec("torch") is None:
            parser.error("there is no torch here: name an interpreter with --torch-python")
        options.torch_python = sys.executable
    mx.disable_compile()  # kernels for models this small take longer than the models
    if options.mixed:
        each = -(-options.mixed // len(MIXED))
        rows = [mixed_row(family, each) for family in MIXED]
    elif options.pictures:
        rows = [pictures_row(family, options.pictures) for family in ("idefics3", "qwen3_vl")]
    elif options.against == "torch":
        rows = torch_rows.rows(options.torch_python)
    else:
        rows = [family_row(family) for family in sorted(SPECS)]
    print(format_table(rows))


if __name__ == "__main__":
    main()
