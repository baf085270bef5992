"""The command line as texts: which flag was given what, and a help page in groups."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import Field, dataclass, field
from typing import Any, NoReturn

from mlx_parallm.options.elsewhere import ALIASES, BY_NAME, FLAGS
from mlx_parallm.options.values import Choice, parse_bytes, size, switch

Options = Sequence[Field[Any]]

GROUPS: dict[str, tuple[str, ...]] = {
    "the ten that matter": (
        *("model_path", "host", "port", "served_model_name", "api_key", "max_model_len"),
        *("max_batch_size", "kv_cache_memory", "quantize", "speculative"),
    ),
    "model": (
        *("dtype", "chat_template", "trust_remote_code", "allow_special_tokens_in_content"),
        *("predictor", "transcription_model", "tensor_parallel", "pipeline_parallel"),
    ),
    "for requests that do not say": (
        *("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
        *("presence_penalty", "frequency_penalty", "seed", "chat_template_kwargs"),
    ),
    "batch and memory": (
        *("gpu_memory_utilization", "prefill_chunk", "max_gap", "batch_timeout_ms", "max_queue"),
        *(
            "memory_limit",
            "prefix_cache_memory",
            "prefix_cache_dir",
            "prefix_cache_disk",
            "prefix_isolation",
        ),
    ),
    "guessing ahead": ("draft_model", "num_draft_tokens"),
    "Extended Mind memories": (
        *("use_extended_mind", "memory_dir", "memory_store", "memory_budget"),
    ),
    "network and access": (
        *("no_ui", "admin_key", "cors_origin", "request_timeout", "max_body_size", "drain_timeout"),
        *("step_timeout", "exit_on_engine_failure"),
        *("max_connections", "max_connections_per_address"),
        *("header_timeout", "body_timeout", "idle_timeout"),
    ),
}
REST = "more"

_USAGE = "{prog} [MODEL] [options]"
_DESCRIPTION = (
    "Serve a model over the OpenAI API, everything in one continuous batch. MODEL is a hub id "
    "or a folder in Hugging Face format; without one the small model of this package is served."
)
_EPILOG = """\
examples:
  {prog}                                            the bundled model
  {prog} mlx-community/Qwen3-4B-4bit --port 8080
  {prog} ./my-model --quantize 4bit --kv-cache-memory 8GB --api-key KEY
  {prog} ./my-model --speculative ngram --temperature 0.7 --max-tokens 512
  {prog} --config server.toml                       max-batch-size = 16

Each option is also {prefix}<OPTION> in the environment ({prefix}MAX_BATCH_SIZE=16) and
<option> in the config file. A flag comes first, then the environment, then the file.
Flags of vLLM, llama.cpp and mlx-lm mean the same here, or say what to type instead.
"""


class UsageError(ValueError):
    """A command line that cannot be read; the message is one line."""


@dataclass
class CommandLine:
    """What was typed.

    options: the text (or texts) of each option that was given, by its name.
    models: words without a flag. elsewhere: flags of other servers, in order, with their value.
    """

    options: dict[str, str | list[str]]
    models: list[str] = field(default_factory=list)
    elsewhere: list[tuple[str, str]] = field(default_factory=list)
    config: str | None = None
    version: bool = False
    list_local: bool = False


def flag_of(name: str) -> str:
    """The flag of an option: "--max-queue" for max_queue."""
    return "--" + name.replace("_", "-")


def parse(argv: Sequence[str], options: Options, *, prog: str, prefix: str) -> CommandLine:
    """Read the arguments. `--help` prints and raises SystemExit(0).

    Args:
        options: dataclass fields, each with the metadata of `settings._option`.
        prefix: of environment variables, for the help page.

    Raises:
        UsageError: an unknown flag, or one without its value.
    """
    parser = make_parser(options, prog, prefix)
    found, left = parser.parse_known_args([_with_dashes(word) for word in argv])
    for word in left:
        if word.startswith("-") and len(word) > 1:
            raise UsageError(f"unknown option {word}{suggestion(word, flags(options))}")
    given = vars(found)
    return CommandLine(
        {o.name: given[o.name] for o in options if given[o.name] is not None},
        left,
        given["elsewhere"],
        given["config"],
        given["version"],
        given["list_local"],
    )


def suggestion(word: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" for a word that is nearly one of the known ones, else nothing."""
    word = word.partition("=")[0]
    known = list(known)
    # A beginning is a likelier slip than another word of the same letters.
    longer = sorted(name for name in known if len(word) > 3 and name.startswith(word))
    near = longer[:1] or difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""


def flags(options: Options) -> list[str]:
    """Every flag that is understood, our own first."""
    own = [flag_of(option.name) for option in options]
    aliases = [alias for names in ALIASES.values() for alias in names]
    return [*own, "--config", "--version", "--list-local", "--help", *aliases, *BY_NAME]


def make_parser(options: Options, prog: str, prefix: str) -> argparse.ArgumentParser:
    """The parser of these options, which also writes the help page."""
    parser = _Parser(
        prog=prog,
        usage=_USAGE.format(prog=prog),
        description=_DESCRIPTION,
        epilog=_EPILOG.format(prog=prog, prefix=prefix),
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    by_name = {option.name: option for option in options}
    named = {name for names in GROUPS.values() for name in names}
    rest = tuple(name for name in by_name if name not in named)
    for title, names in {**GROUPS, REST: rest}.items():
        group = parser.add_argument_group(title)
        for name in names:
            _add_option(group, by_name[name])
    _add_general(group)
    _add_elsewhere(parser)
    return parser


def _with_dashes(word: str) -> str:
    """--max_batch_size is --max-batch-size, as vLLM has it."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def _add_option(group: argparse._ArgumentGroup, option: Field[Any]) -> None:
    metadata, name = option.metadata, option.name
    text = (metadata["help"] + _default(option)).replace("%", "%%")
    names = (flag_of(name), *ALIASES.get(name, ()))
    if metadata["parse"] is switch:
        group.add_argument(*names, dest=name, action="store_const", const="true", help=text)
        off = flag_of(f"no_{name}")
        group.add_argument(
            off, dest=name, action="store_const", const="false", help=argparse.SUPPRESS
        )
        return
    # More models than one are taken apart in loading.py.
    action = "append" if metadata["many"] or name == "model_path" else "store"
    group.add_argument(*names, dest=name, action=action, metavar=_metavar(option), help=text)


def _default(option: Field[Any]) -> str:
    value: Any = option.default
    if value in (None, (), False):
        return ""
    return f" (default: {size(value) if option.metadata['parse'] is parse_bytes else value})"


def _metavar(option: Field[Any]) -> str:
    parse = option.metadata["parse"]
    if isinstance(parse, Choice):
        return "{" + ",".join(parse.names) + "}"
    return option.metadata["metavar"] or option.name.upper().split("_")[-1]


def _add_general(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--config", metavar="FILE", help="TOML or JSON file with options")
    group.add_argument("--version", action="store_true", help="print versions and exit")
    group.add_argument(
        "--list-local",
        action="store_true",
        help="print the models of Ollama, LM Studio and the hub's cache on this machine, and exit",
    )
    group.add_argument("-h", "--help", action="help", help="print this page and exit")


def _add_elsewhere(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(elsewhere=[])
    for flag in FLAGS:
        nargs: int | str | None = None if flag.values == 1 else flag.values
        parser.add_argument(
            *flag.names, dest="elsewhere", action=_Elsewhere, nargs=nargs, help=argparse.SUPPRESS
        )


class _Elsewhere(argparse.Action):
    """Keeps a flag of another server with its value."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        value = values if isinstance(values, str) else ""
        earlier = namespace.elsewhere
        namespace.elsewhere = [*earlier, (option_string or self.option_strings[0], value)]


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Names first, the value once; other servers' names for it after the text."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = action.option_strings if action.dest == "help" else action.option_strings[:1]
        value = "" if action.nargs == 0 else f" {action.metavar}"
        return ", ".join(shown) + value

    def _expand_help(self, action: argparse.Action) -> str:
        also = [] if action.dest == "help" else action.option_strings[1:]
        text = super()._expand_help(action)
        return f"{text}; also {', '.join(also)}" if also else text

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Paragraphs without lines of their own are wrapped."""
        if "\n" in text:
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)
