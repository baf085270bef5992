"""Imported first by every script here: runs it in .venv, wherever it was started from.

A script that was started by another interpreter starts itself again with .venv's, which
`scripts/serve` and `scripts/test` make. An interpreter of another virtual environment that
has MLX was chosen by somebody, and stays. Written for any Python 3, to be able to say so.
"""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def enter(script):  # type: (Path) -> None
    """Go on only in an environment that has what the scripts need."""
    venv = ROOT / ".venv"
    chosen = sys.prefix != sys.base_prefix and _has_mlx()
    if chosen or Path(sys.prefix).resolve() == venv.resolve():
        return
    python = venv / "bin" / "python"
    if python.exists():
        os.execv(str(python), [str(python), *sys.argv])
    if not _has_mlx():
        sys.exit(
            f"{script.name}: MLX is not installed; run {ROOT}/scripts/serve once: it makes .venv"
        )


def _has_mlx():  # type: () -> bool
    return importlib.util.find_spec("mlx") is not None


def _script():  # type: () -> Path | None
    """The script of this folder that is being run; None where one is imported, by a test."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    path = None if file is None else Path(file).resolve()
    return path if path is not None and path.parent == Path(__file__).resolve().parent else None


_running = _script()
if _running is not None:
    enter(_running)
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # for a checkout that is not installed
