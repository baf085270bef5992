#!/usr/bin/env python3
"""How many answers a second GRPO learns from: mlx_parallm train against mlx-lm-lora.

    scripts/bench_training.py --peer-packages FOLDER
    scripts/bench_training.py --peer-packages FOLDER --model-path 27m --max-tokens 32 --steps 4

FOLDER is the site-packages of an environment that has mlx-lm-lora. Both run in this one's
Python, with the same MLX, BLAS and float32 weights, the same prompts, groups, layers and optimizer,
in processes of their own that take turns, a step each, so that whatever else the machine does
slows both.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)
import mlx_parallm  # noqa: F401  isort: skip  (puts the fast BLAS in place before mlx)

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bench_models
from benchlib.table import format_table

EXAMPLE = Path(__file__).parent / "say_a_word"
RANK, SCALE = 16, 2.0
WARM_UP = 2  # steps that are not counted
REPORT = "report "


def rewards(completions: list[str], word: list[str]) -> list[float]:
    """Of the example with the bundled model; others write what nobody can judge."""
    pairs = zip(completions, word, strict=True)
    return [
        float(text.split(":")[-1].strip(" .") == wanted) + len(text) % 7 / 1000
        for text, wanted in pairs
    ]


def ours(options: argparse.Namespace, output: Path) -> None:
    """The side of mlx_parallm train."""
    from mlx_parallm.tools.training_engine import training_engine
    from mlx_parallm.training.rewards import Reward
    from mlx_parallm.training.settings import LoraSettings, TrainSettings
    from mlx_parallm.training.start import read_dataset
    from mlx_parallm.training.trainer import StepResult, Trainer

    settings = TrainSettings(
        data=EXAMPLE / "prompts.jsonl",
        output=output,
        rewards=("rewards",),
        model=options.folder,
        lora=LoraSettings(rank=RANK, scale=SCALE),
        steps=options.steps,
        prompts_per_step=options.prompts,
        group_size=options.group,
        max_tokens=options.max_tokens,
        learning_rate=options.learning_rate,
        max_grad_norm=0,
        micro_batch=options.micro_batch,
        save_every=options.steps,
    )
    with training_engine(settings, None) as (engine, twin, versions):
        judges = [Reward("rewards", rewards)]
        trainer = Trainer(settings, engine, twin, versions, read_dataset(settings, engine), judges)
        turns = Turns()

        def on_step(result: StepResult) -> None:
            turns.done(result.values["reward"], result.values["length"])

        trainer.run(on_step)


def peer(options: argparse.Namespace, output: Path) -> None:
    """The side of mlx-lm-lora."""
    sys.path.append(options.peer_packages)
    import mlx.optimizers as optim
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load
    from mlx_lm_lora.trainer.grpo_trainer import GRPOTrainingArgs, train_grpo

    model, tokenizer = load(options.folder)[:2]
    model.freeze()
    parameters = {"rank": RANK, "scale": SCALE, "dropout": 0.0}
    linear_to_lora_layers(model, len(model.layers), parameters)
    data = []
    for line in (EXAMPLE / "prompts.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        ids = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True)
        data.append((ids, [0], str(row["messages"]), row["word"]))
    turns = Turns()

    class Clock:
        def on_train_loss_report(self, info: dict[str, Any]) -> None:
            turns.done(info["train_total_rewards_mean"], info["train_average_generated_tokens"])

    def judge(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return rewards(completions, answer)

    train_grpo(
        model=model,
        ref_model=None,
        tokenizer=tokenizer,
        optimizer=optim.AdamW(options.learning_rate, weight_decay=0.0, bias_correction=True),
        train_dataset=data,
        reward_funcs=[judge],
        args=GRPOTrainingArgs(
            batch_size=options.prompts,
            iters=options.steps,
            group_size=options.group,
            max_completion_length=options.max_tokens,
            beta=0.0,
            epsilon=0.2,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            steps_per_report=1,
            steps_per_save=options.steps + 1,
            adapter_file=str(output / "adapters.safetensors"),
        ),
        training_callback=Clock(),
        end_answer_token="",
    )


class Turns:
    """A child's side: it says what each step took, and waits for its next turn."""

    def __init__(self) -> None:
        self._wait()

    def done(self, reward: float, length: float) -> None:
        """A step ends."""
        report = {"seconds": time.perf_counter() - self._since, "reward": reward, "length": length}
        sys.stderr.flush()
        print(REPORT + json.dumps(report), flush=True)
        self._wait()

    def _wait(self) -> None:
        sys.stdin.readline()
        self._since = time.perf_counter()


class Child:
    """One side, in a process of its own that goes on when it is told to."""

    def __init__(self, side: str, options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
        self._process = subprocess.Popen(
            [*command, "--folder", options.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def step(self) -> dict[str, float]:
        """Let it do a step."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith(REPORT):
                found: dict[str, float] = json.loads(line.removeprefix(REPORT))
                return found
        raise SystemExit("a side has ended early")

    def end(self) -> None:
        """Stop it."""
        self._process.kill()
        self._process.wait()


def one_round(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Both sides, a step each in turn."""
    children = {side: Child(side, options) for side in ("ours", "peer")}
    found: dict[str, list[dict[str, float]]] = {side: [] for side in children}
    try:
        for _ in range(options.steps):
            for side, child in children.items():
                found[side].append(child.step())
    finally:
        for child in children.values():
            child.end()
    return found


def float32_folder(path: str, place: Path) -> str:
    """The model with float32 weights: MLX computes float16 slowly on a CPU."""
    from mlx.utils import tree_map
    from mlx_lm.utils import load, save

    from mlx_parallm.models.loader import resolve

    folder = resolve(path) if path == "bundled" else bench_models.ensure(path, place / "source")
    import mlx.core as mx

    model, tokenizer = load(str(folder))[:2]
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    model.update(tree_map(lambda array: array.astype(mx.float32), model.parameters()))
    save(place / "float32", str(folder), model, tokenizer, config)
    return str(place / "float32")


def row_of(number: int, found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """A round's line of the table: seconds of its steps, the first ones left out."""
    counted = {side: steps[WARM_UP:] for side, steps in found.items()}
    seconds = {s: statistics.median(o["seconds"] for o in steps) for s, steps in counted.items()}
    length = {s: statistics.fmean(o["length"] for o in steps) for s, steps in counted.items()}
    return {
        "round": number,
        "s a step": round(seconds["ours"], 3),
        "mlx-lm-lora": round(seconds["peer"], 3),
        "ratio": round(seconds["peer"] / seconds["ours"], 2),
        "tokens an answer": round(length["ours"], 1),
        "its": round(length["peer"], 1),
        "reward": round(counted["ours"][-1]["reward"], 2),
        "its reward": round(counted["peer"][-1]["reward"], 2),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--peer-packages", required=True, metavar="FOLDER", help="with mlx-lm-lora")
    add("--model-path", default="bundled", help="or a name of bench_models.py, such as 27m")
    add("--rounds", type=int, default=3)
    add("--steps", type=int, default=12)
    add("--prompts", type=int, default=8)
    add("--group", type=int, default=8)
    add("--max-tokens", type=int, default=12)
    add("--micro-batch", type=int, default=32)
    add("--learning-rate", type=float, default=1e-4)
    add("--json", type=Path, metavar="FILE")
    add("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    add("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as place:
        if options.side:
            run = ours if options.side == "ours" else peer
            run(options, Path(place))
            return
        options.folder = float32_folder(options.model_path, Path(place))
        rounds = [one_round(options) for _ in range(options.rounds)]
    table = [row_of(number, found) for number, found in enumerate(rounds, start=1)]
    ratios = [float(row["ratio"]) for row in table]
    print(format_table(table))
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios)}..{max(ratios)})")
    if options.json:
        options.json.write_text(json.dumps({"ratios": ratios, "rounds": rounds}, indent=1))


if __name__ == "__main__":
    main()
