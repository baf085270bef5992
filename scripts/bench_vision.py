#!/usr/bin/env python3
"""What pictures cost the rows beside them, on a random qwen3_vl of 15 million parameters.

    scripts/bench_vision.py
    scripts/bench_vision.py --rounds 5
    scripts/bench_vision.py --only text   # steps without pictures, with eyes and without
    scripts/bench_vision.py --only text --blind-first

Of two engines in one process the one that was loaded first is about 5% slower, whichever it is:
what eyes cost a step is the geometric mean of both orders.

Text rows decode, alone and while pictures arrive; a model that sees decodes text, and the same one
without eyes; and a picture is asked about twice. Ratios are of medians within a round.
"""

from __future__ import annotations

import in_venv  # isort: skip  (starts this script again in .venv)
import mlx_parallm  # noqa: F401  isort: skip  (puts the fast BLAS in place before mlx)

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from benchlib.table import format_table, percentile, spread_of

sys.path.insert(0, str(in_venv.ROOT))  # the random model is made as the tests' are

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.sequence import Output
from mlx_parallm.engine.sequence import Sequence as Row
from mlx_parallm.models.loader import LoadedModel, load_model
from tests.engine.driver import Driver
from tests.engine.pictures.seeing import PICTURE, sequence_of
from tests.models.vision.tiny_vision import SPECS, folder_of, picture

FAMILY, ROWS, PICTURES, TOKENS, SIDE = "qwen3_vl", 16, 8, 120, 448


def make_larger() -> None:
    """Sizes at which the time goes into products, as in real models."""
    spec = SPECS[FAMILY]
    spec["text"] |= {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6}
    spec["text"] |= {"head_dim": 96, "rope_scaling": {**spec["text"]["rope_scaling"]}}
    spec["text"]["rope_scaling"]["mrope_section"] = [24, 12, 12]
    spec["vision"] |= {"depth": 8, "hidden_size": 256, "intermediate_size": 768, "num_heads": 4}
    spec["vision"] |= {"out_hidden_size": 384, "num_position_embeddings": 1024}
    spec["processor"] |= {"max_pixels": SIDE * SIDE}


def start(load: Callable[[], LoadedModel]) -> Engine:
    engine = Engine(load, EngineConfig(max_batch_size=ROWS + PICTURES))
    engine.start()
    engine.wait_ready()
    return engine


def blind() -> LoadedModel:
    """The same model without its eyes."""
    loaded = load_model(str(folder_of(FAMILY)))
    loaded.vision = None
    return loaded


def texts(engine: Engine) -> list[Row]:
    settings = {"max_tokens": TOKENS, "ignore_eos": True}
    return [
        sequence_of(engine, FAMILY, f"user: Text {n}.\nassistant:", [], **settings)
        for n in range(ROWS)
    ]


def asks(engine: Engine, seed: int) -> Row:
    text = f"user: {PICTURE} What is it?\nassistant:"
    return sequence_of(engine, FAMILY, text, [picture(seed, SIDE, SIDE)], ignore_eos=True)


def gaps(engine: Engine, pictures: Sequence[Row] = ()) -> list[float]:
    """Seconds between the tokens of text rows, while these arrive."""
    driver, rows = Driver(engine), texts(engine)
    came: dict[int, list[float]] = defaultdict(list)

    def note(output: Output) -> None:
        came[output.sequence_id].append(time.perf_counter())

    driver.on_output = note
    for place, sequence in enumerate(pictures):
        driver.at_step(16 + 8 * place, partial(driver.submit, sequence))
    driver.run(*rows)
    times = [came[row.id] for row in rows]
    return [after - before for each in times for before, after in pairwise(each)]


def text_gaps(seeing: Engine, unseeing: Engine) -> tuple[list[float], list[float]]:
    """Of text rows with and without eyes: in the order ABBA, since a machine's speed drifts by
    more within a round than what is measured."""
    first, second = gaps(seeing), gaps(unseeing)
    second += gaps(unseeing)
    return first + gaps(seeing), second


def first_token(engine: Engine, seed: int) -> float:
    """Seconds until a picture's answer begins."""
    driver, sequence = Driver(engine), asks(engine, seed)
    came: list[float] = []
    driver.on_output = lambda _: came.append(time.perf_counter())
    began = time.perf_counter()
    driver.run(sequence)
    return came[0] - began


def round_of(seeing: Engine, unseeing: Engine, number: int) -> dict[str, float]:
    """One round of everything."""
    pictures = [asks(seeing, 100 * number + place) for place in range(PICTURES)]
    alone, without = text_gaps(seeing, unseeing)
    beside = gaps(seeing, pictures)
    seed = 100 * number + 99
    cold, warm = first_token(seeing, seed), first_token(seeing, seed)
    p95 = percentile(beside, 0.95) or 0.0
    return {
        "plain gap p95, ms": 1e3 * (percentile(alone, 0.95) or 0.0),
        "beside pictures": p95 / (percentile(alone, 0.95) or 1.0),
        "beside pictures, over the median": p95 / statistics.median(alone),
        "step, eyes over none": statistics.median(alone) / statistics.median(without),
        "cold first token, ms": 1e3 * cold,
        "cached over cold": warm / cold,
    }


def text_round(seeing: Engine, unseeing: Engine) -> dict[str, float]:
    """One round of steps without pictures."""
    alone, without = (statistics.median(found) for found in text_gaps(seeing, unseeing))
    names = ("step with eyes, ms", "step without, ms", "step, eyes over none")
    return dict(zip(names, (1e3 * alone, 1e3 * without, alone / without), strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["text"])
    parser.add_argument("--blind-first", action="store_true", help="load that engine first")
    options = parser.parse_args(arguments)
    make_larger()
    loads = [lambda: load_model(str(folder_of(FAMILY))), blind]
    engines = [start(load) for load in (reversed(loads) if options.blind_first else loads)]
    seeing, unseeing = reversed(engines) if options.blind_first else engines
    try:
        measured: Callable[[int], dict[str, float]] = (
            (lambda _: text_round(seeing, unseeing))
            if options.only == "text"
            else partial(round_of, seeing, unseeing)
        )
        measured(0)  # kernels are compiled, and the curve is measured
        rounds = [measured(number) for number in range(1, options.rounds + 1)]
    finally:
        seeing.stop()
        unseeing.stop()
    print(format_table(spread_of(rounds)))


if __name__ == "__main__":
    main()
