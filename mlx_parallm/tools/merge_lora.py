"""The command `mlx_parallm_merge_lora`: a model whose weights have an adapter in them."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from mlx_parallm.cpu import blas
from mlx_parallm.errors import InvalidRequestError, ParallmError

PROGRAM = "mlx_parallm_merge_lora"
_NOT_COPIED = (".safetensors", ".safetensors.index.json", ".gguf", ".bin", ".md")


def main(argv: list[str] | None = None) -> int:
    """Merge one adapter; print the new model's folder.

    Returns:
        The exit code: 0, 1 where it cannot be merged, 2 for wrong options.
    """
    options = _parser().parse_args(argv)
    blas.preload()
    try:
        merge_folder(options.model_path, options.adapter, options.output, pack=options.pack)
    except (ParallmError, OSError) as error:
        sys.stderr.write(f"{PROGRAM}: error: {error}\n")
        return 1
    sys.stdout.write(f"{options.output}\n")
    return 0


def merge_folder(base: str, adapter: Path, output: Path, *, pack: bool) -> None:
    """Write a model's folder with an adapter in its weights.

    Raises:
        ParallmError: one of the two cannot be read, or they do not fit.
    """
    # Imported late: `--help` answers at once.
    from mlx_lm.utils import save_config, save_model

    from mlx_parallm.models.loader import load_as_stored
    from mlx_parallm.models.lora.merge import merge
    from mlx_parallm.models.lora.modules import Modules
    from mlx_parallm.models.lora.reader import read_folder

    model, config, folder = load_as_stored(base)
    if output.exists() and output.samefile(folder):
        raise InvalidRequestError("--output is the model's own folder; give another one.")
    merge(model, read_folder(adapter, Modules(model), sys.maxsize).deltas, pack=pack)
    output.mkdir(parents=True, exist_ok=True)
    save_model(output, model)
    save_config(config, output / "config.json")
    for file in folder.iterdir():
        written = file.name == "config.json" or file.name.endswith(_NOT_COPIED)
        if file.is_file() and not written:
            shutil.copy(file, output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Put a LoRA or DoRA adapter (PEFT's or mlx-lm's) into a model's weights.",
        epilog="Modules of a packed (quantized) model that the adapter changes are written plain, "
        "so that the answers stay those of the model with the adapter.",
    )
    parser.add_argument("--model-path", default="bundled", metavar="PATH", help="the base model")
    parser.add_argument("--adapter", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--pack", action="store_true", help="pack them again; that rounds them")
    return parser


if __name__ == "__main__":
    sys.exit(main())
