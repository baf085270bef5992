"""The command `mlx_parallm_convert_adapter`: PEFT's adapters as mlx-lm's, and back."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_parallm.cpu import blas
from mlx_parallm.errors import InvalidRequestError, ParallmError

PROGRAM = "mlx_parallm_convert_adapter"
_FILES = {"mlx-lm": "adapters.safetensors", "peft": "adapter_model.safetensors"}


def main(argv: list[str] | None = None) -> int:
    """Convert one adapter; print its new folder.

    Returns:
        The exit code: 0, 1 where it cannot be converted, 2 for wrong options.
    """
    options = _parser().parse_args(argv)
    blas.preload()
    try:
        convert(options.adapter, options.output, options.model_path, options.to)
    except (ParallmError, OSError) as error:
        sys.stderr.write(f"{PROGRAM}: error: {error}\n")
        return 1
    sys.stdout.write(f"{options.output}\n")
    return 0


def convert(adapter: Path, output: Path, base: str | None, to: str | None) -> None:
    """Write an adapter in the other format.

    Args:
        base: the model that it is for; None is the one that its config names.
        to: "mlx-lm" or "peft"; None is the one that it is not.

    Raises:
        ParallmError: it cannot be read, or the other format has nothing like it.
    """
    # Imported late: `--help` answers at once.
    from safetensors.numpy import save_file

    from mlx_parallm.models.checkpoint.renaming import weight_names
    from mlx_parallm.models.loader import load_as_stored
    from mlx_parallm.models.lora.modules import Modules
    from mlx_parallm.models.lora.peft_format import is_peft
    from mlx_parallm.models.lora.reader import CONFIG, read_config, read_folder
    from mlx_parallm.models.lora.write_mlx_lm import to_mlx_lm
    from mlx_parallm.models.lora.write_peft import to_peft

    config = read_config(adapter)
    to = to or ("mlx-lm" if is_peft(config) else "peft")
    base = base or _base_of(config)
    model, _, folder = load_as_stored(base)
    modules = Modules(model)
    deltas = read_folder(adapter, modules, sys.maxsize).deltas
    if to == "mlx-lm":
        written, tensors = to_mlx_lm(deltas, model, modules)
    else:
        written, tensors = to_peft(deltas, base, sorted(weight_names(folder)), modules)
    output.mkdir(parents=True, exist_ok=True)
    own = {name: array.copy(order="C") for name, array in tensors.items()}
    save_file(own, output / _FILES[to])
    (output / CONFIG).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def _base_of(config: Mapping[str, Any]) -> str:
    base = config.get("base_model_name_or_path") or config.get("model")
    if not isinstance(base, str):
        raise InvalidRequestError("The adapter does not name its base model; give --model-path.")
    return base


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Convert an adapter between PEFT's format and mlx-lm's."
    )
    parser.add_argument("adapter", type=Path, metavar="FOLDER", help="with adapter_config.json")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the new folder")
    parser.add_argument(
        "--model-path", metavar="PATH", help="the base model; default: the one that it names"
    )
    parser.add_argument("--to", choices=tuple(_FILES), help="default: the other format")
    return parser


if __name__ == "__main__":
    sys.exit(main())
