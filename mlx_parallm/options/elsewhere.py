"""Flags that people know from vLLM, llama.cpp, mlx-lm and SGLang.

Where a flag means one of our options it is an alias. Every other one either sets an option
(`_sets`), is accepted with a note that it is not needed (`_not_needed`), or is an error that
says what to type instead (`_instead`). None is ignored in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

# Option -> other flags that mean exactly it.
ALIASES: dict[str, tuple[str, ...]] = {
    "model_path": ("--model", "-m", "--hf-repo", "-hf", "-hfr"),
    "served_model_name": ("--alias", "-a"),
    "max_model_len": ("--context-length",),
    "max_batch_size": (
        *("--max-num-seqs", "--parallel", "-np", "--decode-concurrency"),
        "--max-running-requests",
    ),
    "prefill_chunk": (
        *("--max-num-batched-tokens", "--ubatch-size", "-ub", "--prefill-step-size"),
        "--chunked-prefill-size",
    ),
    "kv_cache_memory": ("--kv-cache-memory-bytes",),
    "gpu_memory_utilization": ("--mem-fraction-static",),
    "step_timeout": ("--watchdog-timeout",),
    "tensor_parallel": ("--tensor-parallel-size", "-tp", "--tp-size"),
    "pipeline_parallel": ("--pipeline-parallel-size", "-pp", "--pp-size"),
    "prefix_cache_memory": ("--prompt-cache-bytes",),
    "no_ui": ("--no-webui",),
    "draft_model": ("--model-draft", "-md", "--hf-repo-draft", "-hfd", "-hfrd"),
    "num_draft_tokens": ("--draft-max", "--draft"),
    "temperature": ("--temp",),
    "repetition_penalty": ("--repeat-penalty",),
    "chat_template": ("--chat-template-file",),
    "chat_template_kwargs": ("--chat-template-args", "--default-chat-template-kwargs"),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """An option and the text that it is set to."""

    option: str
    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the user; the flag is accepted."""

    text: str


Answer = Setting | Note | None


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag of another server.

    names: its spellings. values: how many values it takes, "?" is none or one.
    answer: from the value ("" for none) to what follows; raises ValueError with one line.
    """

    names: tuple[str, ...]
    values: Literal[0, 1, "?"]
    answer: Callable[[str], Answer]


def _sets(option: str, convert: Callable[[str], str | None] = str) -> Callable[[str], Answer]:
    """Set an option; a conversion to None leaves it as it is."""

    def answer(value: str) -> Answer:
        text = convert(value)
        return None if text is None else Setting(option, text)

    return answer


def _not_needed(reason: str) -> Callable[[str], Answer]:
    return lambda value: Note(f"not needed: {reason}")


def _instead(what: str) -> Callable[[str], Answer]:
    def answer(value: str) -> Answer:
        raise ValueError(what)

    return answer


def _only(*values: str, otherwise: str) -> Callable[[str], Answer]:
    """Accepted with these values, which describe what happens anyway."""

    def answer(value: str) -> Answer:
        if value.lower() not in values:
            raise ValueError(otherwise)
        return None

    return answer


def _origins(value: str) -> str:
    """vLLM writes a JSON list, mlx-lm names with commas between them."""
    try:
        found = json.loads(value)
    except ValueError:
        found = value.split(",")
    if not isinstance(found, list) or len(found) != 1:
        raise ValueError("type --cors-origin ORIGIN instead, once for each origin")
    return str(found[0])


def _flash_attention(value: str) -> Answer:
    if value.lower() not in ("", "on", "off", "auto", "1", "0"):
        raise ValueError("expected on, off, auto or nothing")
    return Note("not needed: attention is always MLX's fused one")


def _flags() -> Iterator[Flag]:
    yield from _MODEL
    yield from _MEMORY
    yield from _DEVICES
    yield from _SAMPLING
    yield from _SERVING


def _flag(names: str, values: Literal[0, 1, "?"], answer: Callable[[str], Answer]) -> Flag:
    return Flag(tuple(names.split()), values, answer)


_NO_GGUF_ADAPTERS = (
    "adapters in GGUF are not read; type --adapter-path FOLDER for one of PEFT or mlx-lm"
)
_NO_EXPERT_PARALLEL = "type --tensor-parallel N, which divides every layer over N processes"
_WHICH_PIPELINE = "type --pipeline-parallel N, which divides the layers over N processes"
_EQUAL_PARTS = "type --tensor-parallel N, whose parts are equal"
_REPLICAS = "type mlx_parallm serve-many N, which starts N replicas behind a router"
_DEVICE_ITSELF = "every layer is on the device that MLX uses: the GPU where there is one"
_ALWAYS_BATCHES = "requests are always batched continuously, long prompts in chunks"
_TEMPLATES = "the model's own chat template is always used"
_MODEL = (
    _flag(
        "-mu --model-url --hf-file -hff",
        1,
        _instead("type --model-path ORG/NAME, or the path of what you have on this disk"),
    ),
    _flag(
        "--mmproj -mm",
        1,
        _instead("put that file beside the model's, where it is found; leave it out"),
    ),
    _flag(
        "--tokenizer",
        1,
        _instead("the tokenizer in the model's folder is used; put another one there"),
    ),
    _flag(
        "--revision --tokenizer-revision",
        1,
        _instead(
            "type mlx_parallm pull ORG/NAME --revision REVISION, then --model-path with the folder "
            "that it prints"
        ),
    ),
    _flag("--download-dir", 1, _instead("set HF_HOME=FOLDER in the environment")),
    _flag("--offline", 0, _instead("set HF_HUB_OFFLINE=1 in the environment")),
    _flag("--load-format", 1, _only("auto", "safetensors", otherwise="safetensors are read")),
    _flag(
        "--quantization -q",
        1,
        _instead(
            "packed checkpoints are recognised; to pack the weights here type --quantize 4bit"
        ),
    ),
    _flag("--lora", 1, _instead(_NO_GGUF_ADAPTERS)),
    _flag("--enable-lora", 0, _not_needed("adapters can always be loaded")),
    _flag(
        "--task --runner --convert --pooling",
        1,
        _not_needed("every endpoint that the model can answer is served"),
    ),
    _flag(
        "--embedding --embeddings --reranking --rerank",
        0,
        _not_needed("every endpoint that the model can answer is served"),
    ),
    _flag("--jinja --use-default-chat-template", 0, _not_needed(_TEMPLATES)),
)
_MEMORY = (
    _flag("-c --ctx-size", 1, _sets("max_model_len", lambda v: "auto" if v == "0" else v)),
    _flag("--enable-prefix-caching --cache-prompt", 0, _not_needed("prefixes are always cached")),
    _flag(
        "--no-enable-prefix-caching --no-cache-prompt --disable-radix-cache",
        0,
        _sets("prefix_cache_memory", lambda v: "off"),
    ),
    _flag(
        "-cram --cache-ram",
        1,
        _sets("prefix_cache_memory", lambda v: "off" if v == "0" else f"{v}MiB"),
    ),
    _flag(
        "--prompt-cache-size",
        1,
        _instead("prefixes are bounded by their bytes; type --prefix-cache-memory SIZE"),
    ),
    _flag("--cache-reuse", 1, _not_needed("prefixes are always cached")),
    _flag(
        "--kv-cache-dtype -ctk --cache-type-k -ctv --cache-type-v",
        1,
        _only("auto", otherwise="K and V have the model's type; type --dtype float16 for half"),
    ),
    _flag(
        "--block-size --swap-space --cpu-offload-gb --max-num-partial-prefills",
        1,
        _not_needed("memory for K and V is managed by --kv-cache-memory alone"),
    ),
    _flag("--mlock --no-mmap", 0, _not_needed("weights are read into memory at start")),
)
_DEVICES = (
    _flag(
        "--expert-parallel-size",
        1,
        _only("1", otherwise=_NO_EXPERT_PARALLEL),
    ),
    _flag("--data-parallel-size -dp", 1, _only("1", otherwise=_REPLICAS)),
    _flag("--pipeline", 0, _instead(_WHICH_PIPELINE)),
    _flag("--enable-expert-parallel", 0, _instead(_NO_EXPERT_PARALLEL)),
    _flag("-ngl --gpu-layers --n-gpu-layers", 1, _not_needed(_DEVICE_ITSELF)),
    _flag("--device -dev --main-gpu -mg", 1, _not_needed(_DEVICE_ITSELF)),
    _flag(
        "--split-mode -sm --tensor-split -ts",
        1,
        _instead("type --tensor-parallel N: all parts are equal"),
    ),
    _flag(
        "-t --threads -tb --threads-batch",
        1,
        _not_needed("threads suit the model; OPENBLAS_NUM_THREADS=N in the environment sets them"),
    ),
    _flag("-fa --flash-attn", "?", _flash_attention),
    _flag("--attention-backend", 1, _not_needed("attention is always MLX's fused one")),
    _flag("--enforce-eager", 0, _not_needed("there are no CUDA graphs")),
)
_SAMPLING = (
    _flag(
        "-n --predict --n-predict",
        1,
        _sets("max_tokens", lambda v: None if v in ("-1", "-2") else v),
    ),
    _flag("-s", 1, _sets("seed", lambda v: None if v == "-1" else v)),
    _flag(
        "--generation-config --override-generation-config",
        1,
        _instead("type the defaults themselves: --temperature, --top-p, --top-k, --max-tokens"),
    ),
    _flag(
        "--speculative-config",
        1,
        _instead("type --draft-model PATH, or --speculative ngram for n-grams"),
    ),
    _flag("--enable-auto-tool-choice", 0, _not_needed("calls of tools are always parsed")),
    _flag(
        "--tool-call-parser",
        1,
        _not_needed("calls of tools are parsed in the way that the model's template writes them"),
    ),
    _flag(
        "--reasoning-parser --reasoning-format",
        1,
        _only("none", otherwise="reasoning stays in the content as the model writes it"),
    ),
)
_SERVING = (
    _flag("--allowed-origins", 1, _sets("cors_origin", _origins)),
    _flag(
        "-cb --cont-batching --enable-chunked-prefill --enable-mixed-chunk",
        0,
        _not_needed(_ALWAYS_BATCHES),
    ),
    _flag(
        "-b --batch-size",
        1,
        _instead("type --prefill-chunk for tokens a step, --max-batch-size for sequences"),
    ),
    _flag("--prompt-concurrency", 1, _not_needed(_ALWAYS_BATCHES)),
    _flag("--timeout -to", 1, _instead("type --request-timeout SECONDS")),
    _flag("--metrics --slots --props", 0, _not_needed("/metrics and /health always answer")),
    _flag("-v --verbose", 0, _sets("log_level", lambda v: "debug")),
    _flag("--uvicorn-log-level", 1, _instead("type --log-level LEVEL")),
    _flag(
        "--disable-log-requests --disable-log-stats --no-enable-log-requests",
        0,
        _not_needed("requests are not logged"),
    ),
    _flag("--ssl-key-file", 1, _sets("ssl_keyfile")),
    _flag("--ssl-cert-file", 1, _sets("ssl_certfile")),
)

FLAGS: tuple[Flag, ...] = tuple(_flags())
BY_NAME: dict[str, Flag] = {name: flag for flag in FLAGS for name in flag.names}
