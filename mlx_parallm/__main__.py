"""The command `mlx_parallm COMMAND`, also as `python -m mlx_parallm`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_parallm.cpu.huge_pages import restart_with_huge_pages
from mlx_parallm.options.parser import suggestion

_EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Command:
    """module: has main(argv) -> exit code; imported only when it is run."""

    module: str
    text: str


COMMANDS = {
    "serve": Command("mlx_parallm.cli", "serve a model (the same as mlx_parallm_serve)"),
    "serve-many": Command("mlx_parallm.tools.serve_many", "replicas of it behind a router"),
    "chat": Command("mlx_parallm.tools.chat", "talk to a model in the terminal"),
    "pull": Command("mlx_parallm.tools.pull", "download a model"),
    "check": Command("mlx_parallm.tools.check", "see whether a model can be served here"),
    "bench": Command("mlx_parallm.tools.bench", "first token and tokens a second of a server"),
    "train": Command("mlx_parallm.tools.train", "train an adapter by rewards (GRPO)"),
    "convert-adapter": Command(
        "mlx_parallm.tools.convert_adapter", "turn PEFT's adapters into mlx-lm's, and back"
    ),
    "merge-lora": Command("mlx_parallm.tools.merge_lora", "put an adapter into a model's weights"),
    "version": Command("mlx_parallm.tools.version", "versions, device and BLAS"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: its name and arguments; those of the process when None.

    Returns:
        The command's exit code; 2 where there is no such command.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = words.pop(0) if words else ""
    if name in ("-h", "--help", "help", ""):
        sys.stdout.write(_help())
        return 0 if name else _EXIT_USAGE
    name = {"--version": "version"}.get(name, name)
    if name not in COMMANDS:
        sys.stderr.write(
            f"mlx_parallm: error: there is no command {name!r}{suggestion(name, COMMANDS)}; "
            f"there are {', '.join(COMMANDS)}\n"
        )
        return _EXIT_USAGE
    if name == "serve" and argv is None:
        restart_with_huge_pages()
    return _run(COMMANDS[name], words)


def _run(command: Command, words: list[str]) -> int:
    try:
        return int(importlib.import_module(command.module).main(words))
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED


def _help() -> str:
    listed = "\n".join(f"  {name:<17}{command.text}" for name, command in COMMANDS.items())
    return (
        "usage: mlx_parallm COMMAND [options]\n\n"
        "An OpenAI-compatible inference server on MLX that batches everything.\n\n"
        f"commands:\n{listed}\n\n"
        "`mlx_parallm COMMAND --help` says more, and `mlx_parallm serve` starts at once: it "
        "serves\nthe small model of this package at http://127.0.0.1:8000.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
