"""The command `mlx_parallm_train`: reinforcement learning (GRPO) on the engine that serves."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mlx_parallm.cpu import blas
from mlx_parallm.cpu.huge_pages import restart_with_huge_pages
from mlx_parallm.errors import ParallmError
from mlx_parallm.training.settings import LOSS_KINDS, SCALINGS, LoraSettings, TrainSettings

PROGRAM = "mlx_parallm_train"
_EXIT_INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Train an adapter.

    Returns:
        The exit code: 0 after the last step, 130 after Ctrl-C (a checkpoint is saved), 1 where
        it cannot begin or go on, 2 for wrong options.
    """
    if argv is None:
        restart_with_huge_pages()
    options = _parser().parse_args(argv)
    try:
        return _train(_settings(options), options.serve)
    except ParallmError as error:
        sys.stderr.write(f"{PROGRAM}: error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{PROGRAM}: stopped; --resume goes on from the newest checkpoint\n")
        return _EXIT_INTERRUPTED


def _train(settings: TrainSettings, serve: int | None) -> int:
    # Imported late: `--help` and wrong options answer at once.
    blas.preload()
    from mlx_parallm.tools.training_engine import training_engine
    from mlx_parallm.training.run import Run, prepare

    prepare(settings)
    with training_engine(settings, serve) as (engine, twin, versions):
        done = Run(settings, engine, twin, versions).train()
    sys.stdout.write(f"{settings.output}\n")
    return 0 if done == settings.steps else _EXIT_INTERRUPTED


def _settings(options: argparse.Namespace) -> TrainSettings:
    values = {name: value for name, value in vars(options).items() if name != "serve"}
    names = ("rank", "scale", "num_layers", "keys", "dora")
    lora = {name: values.pop(name) for name in names}
    lora["keys"] = tuple(lora["keys"])
    for name in ("rewards", "reward_weights", "stop"):
        values[name] = tuple(values[name])
    return TrainSettings(**values, lora=LoraSettings(**lora))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Train a LoRA or DoRA adapter by rewards (GRPO); see docs/training.md.",
    )
    _add_what(parser)
    _add_adapter(parser)
    _add_steps(parser)
    _add_update(parser)
    return parser


def _add_what(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model-path", dest="model", default="bundled", metavar="PATH", help="the base model")
    add("--dtype", default="auto", choices=("auto", "float32", "float16", "bfloat16"), help="type")
    add("--data", type=Path, required=True, metavar="FILE", help="JSONL with prompt or messages")
    add("--output", type=Path, required=True, metavar="FOLDER", help="adapter, checkpoints, logs")
    add(
        *("--reward", "-r"),
        dest="rewards",
        action="append",
        default=[],
        metavar="REWARD",
        help="FILE.py:FUNCTION, exact_match[:FIELD], contains[:FIELD], regex:PATTERN, "
        "json_schema[:FIELD or FILE.json] or length:TOKENS; may be given several times",
    )
    add("--reward-weights", type=float, nargs="+", default=(), metavar="W", help="one each")
    add("--resume", action="store_true", help="go on from the newest checkpoint in --output")
    add("--serve", type=int, metavar="PORT", help="serve the policy meanwhile; 0: a free port")


def _add_adapter(parser: argparse.ArgumentParser) -> None:
    add, own = parser.add_argument, LoraSettings()
    add("--rank", type=int, default=own.rank, help="of the low-rank matrices")
    add("--scale", type=float, default=own.scale, help="of their product (alpha / rank)")
    add("--num-layers", type=int, default=own.num_layers, help="the last so many; -1: all")
    add("--keys", nargs="+", default=(), metavar="MODULE", help="self_attn.q_proj ...; all linear")
    add("--dora", action="store_true", help="train magnitudes too")


def _add_steps(parser: argparse.ArgumentParser) -> None:
    add, own = parser.add_argument, TrainSettings
    add("--steps", type=int, default=own.steps, help="updates")
    add("--prompts-per-step", type=int, default=own.prompts_per_step, help="different prompts")
    add("--group-size", type=int, default=own.group_size, help="answers to each prompt")
    add("--max-tokens", type=int, default=own.max_tokens, help="of an answer")
    add("--temperature", type=float, default=own.temperature, help="of sampling")
    add("--stop", action="append", default=[], metavar="TEXT", help="ends an answer")
    add("--max-batch-size", type=int, default=own.max_batch_size, help="answers at once")
    add("--seed", type=int, default=own.seed, help="the same seed gives the same run")
    add("--save-every", type=int, default=own.save_every, help="steps between checkpoints")
    add("--keep", type=int, default=own.keep, help="checkpoints that stay")


def _add_update(parser: argparse.ArgumentParser) -> None:
    add, own = parser.add_argument, TrainSettings
    add("--learning-rate", type=float, default=own.learning_rate, help="of AdamW")
    add("--warmup-steps", type=int, default=own.warmup_steps, help="with smaller rates")
    add("--weight-decay", type=float, default=own.weight_decay, help="of AdamW")
    add("--max-grad-norm", type=float, default=own.max_grad_norm, help="0: no limit")
    add("--updates-per-step", type=int, default=own.updates_per_step, help="with the same answers")
    add("--clip", type=float, default=own.clip, help="of the ratio of probabilities")
    add("--clip-high", type=float, help="above 1; default: --clip")
    add("--kl", type=float, default=own.kl, help="weight of the divergence from the base model")
    add("--loss", choices=LOSS_KINDS, default=own.loss, help="how tokens are averaged")
    add("--scale-rewards", choices=SCALINGS, default=own.scale_rewards, help="of advantages")
    add("--micro-batch", type=int, default=own.micro_batch, help="answers of one backward")


if __name__ == "__main__":
    sys.exit(main())
