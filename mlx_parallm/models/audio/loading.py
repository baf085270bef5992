"""Loads a Whisper: a folder in the format of transformers or of mlx-audio."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.loader import convert
from mlx_parallm.models.sources.sources import resolve
from mlx_parallm.options.values import name_and_path

if TYPE_CHECKING:
    from mlx_parallm.models.audio.whisper import Whisper

INSTALL = "Install the extra for sounds: pip install 'mlx_parallm[audio]'."


def load_whisper(given: str, dtype: str = "auto") -> Whisper:
    """A Whisper that is ready to run, on the thread that calls this.

    Args:
        given: a hub id or a folder, with a name before it or not; see name_and_path.
        dtype: as load_model's.

    Raises:
        ModelLoadError: in one sentence, what is missing or wrong.
    """
    name, path = name_and_path(given)
    if find_spec("mlx_audio") is None:
        raise ModelLoadError(f"--transcription-model {path} needs mlx-audio. {INSTALL}")
    folder = resolve(path)
    config = _read_json(folder / "config.json")
    if config.get("model_type") != "whisper":
        raise ModelLoadError(
            f"{path}: a model for transcriptions is a Whisper, not {config.get('model_type')!r}"
        )
    from mlx_parallm.models.audio.vocabulary import Vocabulary
    from mlx_parallm.models.audio.whisper import Whisper

    try:
        model = _load_model(folder, config, dtype)
        vocabulary = Vocabulary(
            _load_tokenizer(folder),
            multilingual=model.is_multilingual,
            languages=model.num_languages,
        )
        return Whisper(name, path, model, vocabulary)
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(
            f"{path}: the model cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def _load_model(folder: Path, config: dict[str, Any], dtype: str) -> Any:
    from mlx_audio.stt.models.whisper.whisper import Model, ModelDimensions, sinusoids

    weights = _read_weights(folder)
    sizes = ModelDimensions.from_dict(config)
    kind = next(iter(array.dtype for array in weights.values() if array.dtype != mx.uint32))
    model = Model(sizes, kind)
    weights.pop("proj_out.weight", None)  # the embedding once more
    weights = model.sanitize(weights)
    if quantization := config.get("quantization"):
        nn.quantize(
            model,
            **quantization,
            class_predicate=lambda path, module: f"{path}.scales" in weights,
        )
    model.load_weights(list(weights.items()))
    convert(model, dtype, quantization)
    mx.eval(model.parameters())
    model.dtype = max(_floats(model), key=lambda array: array.size).dtype
    # Its own table was computed in the type of the checkpoint, which may be too coarse.
    table = sinusoids(sizes.n_audio_ctx, sizes.n_audio_state)
    model.encoder._positional_embedding = table.astype(model.dtype)
    return model


def _floats(model: Any) -> list[mx.array]:
    arrays: list[mx.array] = list(dict(tree_flatten(model.parameters())).values())
    return [array for array in arrays if array.dtype != mx.uint32]


def _read_weights(folder: Path) -> dict[str, mx.array]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelLoadError(f"{folder}: there are no *.safetensors in this folder")
    found: dict[str, mx.array] = {}
    for file in files:
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        found |= loaded
    return found


def _load_tokenizer(folder: Path) -> Any:
    from transformers import WhisperTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ModelLoadError(f"{folder}: there is no tokenizer in this folder (tokenizer.json)")
    return WhisperTokenizer.from_pretrained(str(folder.resolve()))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{file}: expected an object")
    return value
