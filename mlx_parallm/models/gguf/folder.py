"""A GGUF file as a folder in Hugging Face format, made once and kept in the cache.

Everything that takes a model then takes this one too: adapters, drafts, memories, predictors.
The weights stay packed, so that the folder is about as large as the file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.gguf.architecture import Architecture
from mlx_parallm.models.gguf.architectures import architecture_of, config_of, pooling_config
from mlx_parallm.models.gguf.reader import GgufFile, parts_of
from mlx_parallm.models.gguf.sight import SPECIAL_TOKENS, Sight, beside, name_tokens, sight_of
from mlx_parallm.models.gguf.tokenizer import end_token_ids, make_tokenizer, tokenizer_config
from mlx_parallm.models.gguf.weights import Conversion, weights_of
from mlx_parallm.models.places import cache_folder

_VERSION = 9  # of what is written; another one is another folder
_SHARD = 2 * 1000**3


def as_folder(path: Path) -> Path:
    """The folder of a file; written if this file was not seen before.

    Raises:
        ModelLoadError: in one sentence, what in this file is not supported.
    """
    target = cache_folder("gguf") / f"{path.stem}-{_fingerprint(path)}"
    if target.is_dir():
        return target
    sys.stderr.write(f"reading {path.name}, once\n")
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".part-"))
    try:
        convert(path, scratch)
        scratch.rename(target)
    except OSError as error:
        if target.is_dir():  # another process was faster
            return target
        raise ModelLoadError(f"{path}: {target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def convert(path: Path, folder: Path) -> Conversion:
    """Write a file's model into a folder that is there.

    Raises:
        ModelLoadError: in one sentence, what in this file is not supported.
    """
    file = GgufFile(path)
    sight, blindness = sight_of(path, file)
    if sight is not None:
        name_tokens(file)
    kind, text = architecture_of(file), config_of(file)
    tokenizer = make_tokenizer(file)
    report = Conversion()
    _write_weights(_arrays(file, kind, text, sight, report), folder)
    for name, error in report.rounded.items():
        sys.stderr.write(f"{name} weights are rounded to float16: relative error {error:.1e}\n")
    config = sight.config(text, file.need("tokenizer.ggml.tokens")) if sight else text
    config |= {"quantization": report.quantization} if report.quantization else {}
    config |= {"blindness": blindness} if blindness else {}
    config["torch_dtype"] = "bfloat16" if kind.wide_range else "float16"
    config["eos_token_id"] = end_token_ids(file)
    if barred := file.get("tokenizer.ggml.suppress_tokens"):
        sys.stderr.write(f"tokens that the file suppresses may be said here: {list(barred)}\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    spoken = tokenizer_config(file, text["max_position_embeddings"])
    files = {"config.json": config, "tokenizer_config.json": spoken}
    if sight is not None:
        files |= sight.files() | {"tokenizer_config.json": spoken | SPECIAL_TOKENS}
    for name, content in files.items():
        _write(folder / name, content)
    _write_pooling(file, folder)
    return report


def _arrays(
    file: GgufFile,
    kind: Architecture,
    text: dict[str, Any],
    sight: Sight | None,
    report: Conversion,
) -> Iterator[tuple[str, np.ndarray]]:
    """Of the whole model."""
    if sight is None:
        return weights_of(file, kind, text, report)
    return chain(weights_of(file, sight.within(kind), text, report), sight.weights())


def _write_pooling(file: GgufFile, folder: Path) -> None:
    pooling = pooling_config(file)
    if pooling:
        (folder / "1_Pooling").mkdir()
        _write(folder / "1_Pooling" / "config.json", pooling)


def _write_weights(arrays: Iterable[tuple[str, np.ndarray]], folder: Path) -> None:
    """model-00001.safetensors and on, so that no more than one of them is in memory."""
    shard: dict[str, mx.array] = {}
    count = 0
    for name, array in arrays:
        shard[name] = mx.array(np.ascontiguousarray(array))
        if sum(weight.nbytes for weight in shard.values()) > _SHARD:
            count += 1
            _save(folder, count, shard)
            shard = {}
    if shard:
        _save(folder, count + 1, shard)


def _save(folder: Path, number: int, shard: dict[str, mx.array]) -> None:
    path = folder / f"model-{number:05}.safetensors"
    mx.save_safetensors(str(path), shard, {"format": "mlx"})


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")


def _fingerprint(path: Path) -> str:
    """Of where the files lie, their sizes and their times."""
    known = hashlib.sha256(str(_VERSION).encode())
    for part in (*parts_of(path), *beside(path)):
        facts = part.stat()
        known.update(f"{part.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode())
    return known.hexdigest()[:16]
