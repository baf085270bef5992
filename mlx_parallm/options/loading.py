"""Settings of the server, from command line, environment and config file; read only here.

A value is looked for in that order: `--max-queue 64`, then `MLX_PARALLM_MAX_QUEUE=64`, then
`max-queue = 64` in the file named by `--config`, then the default.
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlx_parallm.options import elsewhere
from mlx_parallm.options.key_file import read_key_file
from mlx_parallm.options.parser import CommandLine, UsageError, flag_of, parse, suggestion
from mlx_parallm.settings import PROGRAM, Settings, SettingsError

ENVIRONMENT_PREFIX = "MLX_PARALLM_"
# Variables with the prefix that others read: the BLAS, and scripts that start the server.
_NOT_OPTIONS = ("CONFIG", "BLAS", "SERVE", "LEADER")
_NO_MEMORIES = "memories hold K and V of the whole model, and every process has a part of them"
_OF_THE_TEXT_MODEL = (
    *("adapter_path", "lora_modules", "draft_model", "quantize"),
    *("tensor_parallel", "pipeline_parallel"),
    *("chat_template", "also_serve", "models_dir", "memory_dir", "memory_store"),
)
_SECRETS = ("api_key", "admin_key", "memory_store")


def load_settings(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from arguments (without the program's name), environment and config file.

    `--help` and `--version` print and raise SystemExit(0). A flag of another server that is not
    needed here is said on standard error.

    Raises:
        SettingsError: an unknown option, a value that does not parse, an unreadable file.
    """
    environment = os.environ if environment is None else environment
    options = fields(Settings)
    try:
        line = parse(argv, options, prog=PROGRAM, prefix=ENVIRONMENT_PREFIX)
    except UsageError as error:
        raise SettingsError(str(error)) from None
    if line.version:
        # It loads MLX; nothing else here does.
        from mlx_parallm.tools.version import version_text

        sys.stdout.write(version_text() + "\n")
        raise SystemExit(0)
    if line.list_local:
        from mlx_parallm.tools.local_list import local_list

        sys.stdout.write(local_list())
        raise SystemExit(0)
    _warn_of_misspelt(environment)
    _take_elsewhere(line)
    _take_model(line)
    path = line.config or environment.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    from_file = _read_config(Path(path)) if path else {}
    values = {
        option.name: value
        for option in options
        if (value := _value(option, line.options, environment, from_file)) is not MISSING
    }
    return _checked(Settings(**_default_model(values), **values))


def _default_model(given: Mapping[str, Any]) -> dict[str, Any]:
    """Where no model is chosen: the bundled one that sees, if there is what it sees with, and
    nothing is asked for that belongs to the weights of the one that reads text only."""
    if any(given.get(name) for name in ("model_path", *_OF_THE_TEXT_MODEL)):
        return {}
    if find_spec("mlx_vlm") is None:
        return {}
    name = {} if "served_model_name" in given else {"served_model_name": ("bundled",)}
    return {"model_path": "bundled/vision", **name}


def _warn_of_misspelt(environment: Mapping[str, str]) -> None:
    """Say where a variable is nearly an option: it has no effect."""
    known = [option.name.upper() for option in fields(Settings)]
    for variable in environment:
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if name == variable or name in (*known, *_NOT_OPTIONS):
            continue
        if near := suggestion(name, known):
            sys.stderr.write(f"{PROGRAM}: note: {variable} has no effect{near}\n")


def _take_elsewhere(line: CommandLine) -> None:
    """Turn the flags of other servers into options, or say why not."""
    for name, value in line.elsewhere:
        typed = f"{name} {value}".strip()
        try:
            answer = elsewhere.BY_NAME[name].answer(value)
        except ValueError as error:
            raise SettingsError(f"{typed}: {error}") from None
        if isinstance(answer, elsewhere.Note):
            sys.stderr.write(f"{PROGRAM}: note: {typed} is {answer.text}\n")
        elif answer is not None:
            _set_once(line, answer.option, answer.text, typed)


def _take_model(line: CommandLine) -> None:
    """The first --model-path is the model, others are --also-serve."""
    if len(line.models) > 1:
        raise SettingsError(
            f"{' and '.join(line.models)}: several models are --model-path A --model-path B; "
            "several names for one are --served-model-name A --served-model-name B"
        )
    typed = line.options.pop("model_path", [])
    first, *others = dict.fromkeys([typed] if isinstance(typed, str) else typed) or [None]
    if first is not None:
        line.options["model_path"] = first
    if others:
        line.options["also_serve"] = [*others, *line.options.get("also_serve", [])]
    if line.models:
        _set_once(line, "model_path", line.models[0], line.models[0])


def _set_once(line: CommandLine, option: str, text: str, typed: str) -> None:
    earlier = line.options.get(option, text)
    if isinstance(earlier, list):
        line.options[option] = [*earlier, text]
        return
    if earlier != text:
        raise SettingsError(f"{typed} contradicts {flag_of(option)} {earlier}")
    line.options[option] = text


def _checked(settings: Settings) -> Settings:
    if settings.kv_cache_memory is not None and settings.gpu_memory_utilization is not None:
        raise SettingsError(
            "--kv-cache-memory and --gpu-memory-utilization exclude each other; give one"
        )
    if settings.api_key_file is not None:
        try:
            read_key_file(Path(settings.api_key_file).expanduser())
        except ValueError as error:
            raise SettingsError(f"--api-key-file {settings.api_key_file}: {error}") from None
    if not settings.has_keys and (settings.requests_per_minute or settings.tokens_per_minute):
        raise SettingsError("limits a minute are of API keys: give --api-key or --api-key-file")
    if settings.num_ranks > 1:
        _check_ranks(settings)
    return settings


def _check_ranks(settings: Settings) -> None:
    """Refuse what a model cannot have that several processes compute."""
    if settings.tensor_parallel > 1 and settings.pipeline_parallel > 1:
        raise SettingsError(
            "--tensor-parallel and --pipeline-parallel exclude each other: a model is divided in "
            "one way"
        )
    flag = "--tensor-parallel" if settings.tensor_parallel > 1 else "--pipeline-parallel"
    refused = {
        "--also-serve": (settings.also_serve, "one model is divided; start a server for another"),
        "--models-dir": (settings.models_dir, "one model is divided; start a server for another"),
        "--strict": (settings.strict, "it compares the whole model, which no process has"),
        "--use-extended-mind": (settings.use_extended_mind, _NO_MEMORIES),
        "--memory-dir": (settings.memory_dir, _NO_MEMORIES),
        "--memory-store": (settings.memory_store, _NO_MEMORIES),
    }
    for name, (given, reason) in refused.items():
        if given:
            raise SettingsError(f"{name} does not go with {flag}: {reason}")


def _value(
    option: Field[Any],
    given: Mapping[str, Any],
    environment: Mapping[str, str],
    from_file: Mapping[str, Any],
) -> Any:
    """The option's value from the first place that has one, or MISSING."""
    variable = ENVIRONMENT_PREFIX + option.name.upper()
    if option.name in given:
        return _parse(option, given[option.name], flag_of(option.name))
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
        shown = "" if option.name in _SECRETS else f" {raw!r}"
        raise SettingsError(f"{place}{shown}: {error}") from None


def _parse_one(option: Field[Any], raw: Any) -> Any:
    # A config file has types of its own; they are read as the text they would be typed as.
    if isinstance(raw, bool):
        raw = str(raw).lower()
    elif isinstance(raw, dict):
        raw = json.dumps(raw)
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
            near = suggestion(key, known)
            raise SettingsError(f"--config {path}: unknown option {key!r}{near}")
    return values
