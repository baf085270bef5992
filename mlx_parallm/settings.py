"""How the server is started: command line, environment and config file, read here only.

A value is looked for in that order: `--max-queue 64`, then `MLX_PARALLM_MAX_QUEUE=64`, then
`max-queue = 64` in the file named by `--config`, then the default. Every option is one field
of `Settings`; the field's metadata says how a text becomes its value.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

ENVIRONMENT_PREFIX = "MLX_PARALLM_"
PROGRAM = "mlx_parallm_serve"

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS |= {_letter: 1000**_power, f"{_letter}B": 1000**_power, f"{_letter}IB": 1024**_power}


class SettingsError(ValueError):
    """A wrong option or value; the message is one line for the user."""


def parse_bytes(text: str) -> int:
    """Bytes from "1000000", "2GB" (decimal) or "512MiB" (binary).

    Raises:
        ValueError: not a positive size.
    """
    compact = text.strip().upper().replace(" ", "")
    number = compact.rstrip("KMGTIB")
    unit = compact[len(number) :]
    if unit not in _UNITS:
        raise ValueError("expected a size such as 2GB or 512MiB")
    try:
        size = int(float(number) * _UNITS[unit])
    except (ValueError, OverflowError):
        raise ValueError("expected a size such as 2GB or 512MiB") from None
    if size <= 0:
        raise ValueError("expected a size above 0")
    return size


def parse_bytes_or_off(text: str) -> int:
    """As parse_bytes; "off" and "0" are 0."""
    return 0 if text.strip().lower() in ("0", "off") else parse_bytes(text)


def _integer(low: int, high: int | None = None) -> Callable[[str], int]:
    limits = f"of at least {low}" if high is None else f"from {low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"expected a whole number {limits}") from None
        if value < low or (high is not None and value > high):
            raise ValueError(f"expected a whole number {limits}")
        return value

    return parse


def _number(low: float, *, above: bool = False) -> Callable[[str], float]:
    limits = f"above {low:g}" if above else f"of at least {low:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"expected a number {limits}") from None
        # Written so that NaN fails too.
        if not (low < value if above else low <= value) or value == float("inf"):
            raise ValueError(f"expected a number {limits}")
        return value

    return parse


def _choice(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return text.lower()

    return parse


def _text(text: str) -> str:
    if not text:
        raise ValueError("expected a value")
    return text


def _switch(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("", "0", "false", "no", "off"):
        return False
    raise ValueError("expected true or false")


def _option(
    default: Any, parse: Callable[[str], Any], text: str, *, many: bool = False, metavar: str = ""
) -> Any:
    """A field of Settings. `many`: may be given several times, the value is a tuple."""
    metadata = {"parse": parse, "help": text, "many": many, "metavar": metavar}
    return field(default=default, metadata=metadata)


def _secret(default: Any, text: str, metavar: str) -> Any:
    """Like a `many` option, but never shown in a repr."""
    metadata = {"parse": _text, "help": text, "many": True, "metavar": metavar}
    return field(default=default, metadata=metadata, repr=False)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set from outside. Sizes are bytes, times are seconds or as named."""

    model_path: str = _option("bundled", _text, "hub id or folder of the model", metavar="PATH")
    served_model_name: tuple[str, ...] = _option(
        (), _text, "name(s) that requests use; default: --model-path", many=True, metavar="NAME"
    )
    host: str = _option("127.0.0.1", _text, "address to listen on")
    port: int = _option(8000, _integer(0, 65535), "port to listen on; 0 picks a free one")
    dtype: str = _option(
        "auto",
        _choice("auto", "float32", "float16", "bfloat16"),
        "type to compute in; auto: float32 on a CPU, the checkpoint's own on a GPU",
    )
    quantize: str | None = _option(
        None,
        _choice("4bit", "8bit", "mxfp4", "mxfp8", "nvfp4"),
        "pack the weights while loading; they stay packed, on a CPU too",
        metavar="KIND",
    )
    predictor: tuple[str, ...] = _option(
        (),
        _text,
        "folder of a plain network for /v1/predict, with signature.json",
        many=True,
        metavar="FOLDER",
    )
    max_batch_size: int = _option(32, _integer(1, 4096), "sequences computed together at most")
    batch_timeout_ms: float = _option(
        2.0, _number(0), "an idle engine waits this long for more requests to start with"
    )
    max_queue: int = _option(1024, _integer(1), "sequences that may wait; more get a 429")
    kv_cache_memory: int | None = _option(
        None, parse_bytes, "memory for K and V, such as 2GB or 512MiB", metavar="SIZE"
    )
    prefix_cache_memory: int | None = _option(
        None,
        parse_bytes_or_off,
        "memory for finished prefixes, or off; default: a quarter of the memory for K and V",
        metavar="SIZE",
    )
    prefix_cache_dir: str | None = _option(
        None, _text, "folder that keeps prefixes over a restart", metavar="DIR"
    )
    prefix_cache_disk: int = _option(
        4 * 1000**3, parse_bytes, "the most bytes in --prefix-cache-dir", metavar="SIZE"
    )
    prefix_isolation: str | None = _option(
        None,
        _choice("none", "key"),
        "who shares cached prefixes: everybody (none), or each API key its own (key); default: "
        "key where there are several --api-key",
        metavar="KIND",
    )
    draft_model: str | None = _option(
        None,
        _text,
        'smaller model with the same tokenizer that guesses ahead; "bundled": the bundled one\'s',
        metavar="PATH",
    )
    speculative: str = _option(
        "auto",
        _choice("auto", "ngram", "off"),
        "guess ahead: ngram from the text so far; auto: with --draft-model, if given",
    )
    num_draft_tokens: int = _option(
        12, _integer(1, 32), "the most tokens to guess in a step; fewer where more does not pay"
    )
    max_model_len: int | None = _option(
        None, _integer(1), "longest prompt plus answer in tokens; default: the model's own"
    )
    request_timeout: float | None = _option(
        None, _number(0, above=True), "seconds after which a request is given up (408)"
    )
    prefill_chunk: int | None = _option(
        None, _integer(1), "prompt tokens that one step adds at most; default: by device"
    )
    use_extended_mind: bool = _option(
        False, _switch, "refuse to start with a model that cannot use memories; they are always on"
    )
    memory_dir: str | None = _option(
        None, _text, "folder in which memories outlive the server", metavar="FOLDER"
    )
    memory_store: str | None = field(
        default=None,
        metadata={
            "parse": _text,
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
    admin_key: tuple[str, ...] = _secret(
        (), "key that /v1/configure needs in x-admin-key", metavar="KEY"
    )
    log_level: str = _option(
        "info", _choice("debug", "info", "warning", "error", "critical"), "how much to log"
    )
    max_body_size: int = _option(
        16 * 1024**2, parse_bytes, "largest request body; more get a 413", metavar="SIZE"
    )
    chat_template: str | None = _option(
        None, _text, "file with a Jinja chat template to use instead of the model's", metavar="FILE"
    )
    allow_special_tokens_in_content: bool = _option(
        False, _switch, "the text of a special token in a message becomes the token"
    )
    trust_remote_code: bool = _option(
        False, _switch, "run Python code that comes with the model's tokenizer"
    )
    cors_origin: tuple[str, ...] = _option(
        (), _text, 'web origin that browsers may call from; "*" is all', many=True, metavar="ORIGIN"
    )

    @property
    def speculation(self) -> str | None:
        """The engine's kind of speculation."""
        if self.speculative == "ngram":
            return "ngram"
        return "draft" if self.speculative == "auto" and self.draft_model is not None else None

    @property
    def isolates_keys(self) -> bool:
        """Whether each API key has cached prefixes of its own."""
        if self.prefix_isolation is None:
            return len(set(self.api_key)) > 1
        return self.prefix_isolation == "key"

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names that the `model` field of a request may have; the first one is reported."""
        return self.served_model_name or (self.model_path,)


def load_settings(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from arguments (without the program's name), environment and config file.

    `--help` and `--version` print and raise SystemExit(0).

    Raises:
        SettingsError: an unknown option, a value that does not parse, an unreadable file.
    """
    environment = os.environ if environment is None else environment
    given = vars(_parser().parse_args(argv))
    if given.pop("version"):
        sys.stdout.write(version_text() + "\n")
        raise SystemExit(0)
    path = given.pop("config") or environment.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    from_file = _read_config(Path(path)) if path else {}
    values = {
        option.name: value
        for option in fields(Settings)
        if (value := _value(option, given, environment, from_file)) is not MISSING
    }
    return Settings(**values)


def version_text() -> str:
    """What `--version` prints: this package, MLX, mlx-lm and the BLAS that MLX uses."""
    from importlib.metadata import PackageNotFoundError, version

    from mlx_parallm import __version__
    from mlx_parallm.cpu import blas

    lines = [f"mlx_parallm {__version__}"]
    for package in ("mlx", "mlx-lm"):
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} is not installed")
    return "\n".join([*lines, f"BLAS {blas.info()}"])


def _flag(option: Field[Any]) -> str:
    return "--" + option.name.replace("_", "-")


def _value(
    option: Field[Any],
    given: Mapping[str, Any],
    environment: Mapping[str, str],
    from_file: Mapping[str, Any],
) -> Any:
    """The option's value from the first place that has one, or MISSING."""
    variable = ENVIRONMENT_PREFIX + option.name.upper()
    if given[option.name] is not None:
        return _parse(option, given[option.name], _flag(option))
    if environment.get(variable):
        raw = environment[variable]
        return _parse(option, raw.split(",") if option.metadata["many"] else raw, variable)
    if option.name in from_file:
        return _parse(option, from_file[option.name], f"{option.name} in the config file")
    return MISSING


def _parse(option: Field[Any], raw: Any, place: str) -> Any:
    many = option.metadata["many"]
    if isinstance(raw, list) != many:
        raw = [raw] if many else raw
    try:
        if many:
            return tuple(_parse_one(option, item) for item in raw)
        return _parse_one(option, raw)
    except ValueError as error:
        # A key must not end up in a log.
        shown = "" if option.name in ("api_key", "admin_key") else f" {raw!r}"
        raise SettingsError(f"{place}{shown}: {error}") from None


def _parse_one(option: Field[Any], raw: Any) -> Any:
    # A config file has types of its own; they are read as the text they would be typed as.
    if isinstance(raw, bool):
        raw = str(raw).lower()
    elif isinstance(raw, (int, float)):
        raw = f"{raw:.17g}" if isinstance(raw, float) else str(raw)
    if not isinstance(raw, str):
        raise ValueError("expected a text or a number")
    return option.metadata["parse"](raw)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"--config {path}: {reason}") from None
    try:
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise SettingsError(f"--config {path}: {error}") from None
    if not isinstance(table, dict):
        raise SettingsError(f"--config {path}: expected a table of options")
    values = {str(key).replace("-", "_"): value for key, value in table.items()}
    known = {option.name for option in fields(Settings)}
    for key in values:
        if key not in known:
            raise SettingsError(f"--config {path}: unknown option {key!r}")
    return values


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Serve a model over the OpenAI API, everything in one continuous batch.",
        epilog=f"Each option can also be set as {ENVIRONMENT_PREFIX}<OPTION> in the environment "
        "or in the config file.",
        allow_abbrev=False,
    )
    for option in fields(Settings):
        _add_argument(parser, option)
    parser.add_argument("--config", metavar="FILE", help="TOML or JSON file with options")
    parser.add_argument("--version", action="store_true", help="print versions and exit")
    return parser


def _add_argument(parser: argparse.ArgumentParser, option: Field[Any]) -> None:
    metadata = option.metadata
    shown = "" if option.default in (None, (), False) else f" (default: {option.default})"
    text = (metadata["help"] + shown).replace("%", "%%")
    if metadata["parse"] is _switch:
        parser.add_argument(_flag(option), action="store_const", const="true", help=text)
        return
    metavar = metadata["metavar"] or option.name.upper().split("_")[-1]
    action = "append" if metadata["many"] else "store"
    parser.add_argument(_flag(option), action=action, metavar=metavar, help=text)
