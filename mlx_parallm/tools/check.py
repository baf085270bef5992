"""The command `mlx_parallm_check`: does a model give here what it should?

The same model is run by mlx_lm alone and by the engine that serves, and its tokenizer, chat
template and end tokens are tried. The report is what to attach to an issue.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mlx_parallm.cpu import blas
from mlx_parallm.errors import ModelLoadError

PROGRAM = "mlx_parallm_check"


def main(argv: list[str] | None = None) -> int:
    """Check a model and print a table, or JSON.

    Returns:
        The exit code: 0 where all is well, 1 where something failed or the model does not load,
        2 for wrong options.
    """
    options = _parser().parse_args(argv)
    blas.preload()
    # Imported late: `--help` answers at once.
    from mlx_parallm.tools.checks.numbers import FULL, QUICK
    from mlx_parallm.tools.checks.run import check_model

    try:
        report = check_model(options.model_path, QUICK if options.quick else FULL, options.dtype)
        found = json.dumps(report.as_json(), indent=1, ensure_ascii=False) + "\n"
        if options.json and options.json != "-":
            Path(options.json).write_text(found, encoding="utf-8")
    except (ModelLoadError, OSError) as error:
        sys.stderr.write(f"{PROGRAM}: error: {error}\n")
        return 1
    sys.stdout.write(found if options.json == "-" else report.as_table() + "\n")
    return 0 if report.passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="See whether a model gives here what mlx_lm alone gives."
    )
    parser.add_argument(
        "--model-path", default="bundled", metavar="PATH", help="as for mlx_parallm_serve"
    )
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "float16", "bfloat16")
    )
    parser.add_argument("--quick", action="store_true", help="a few prompts, no speed")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="print JSON, or write it to a file"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
