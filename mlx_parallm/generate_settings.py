"""The keywords of `generate` and its kin: names, types, defaults, and what they may be."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, TypedDict, TypeVar

from mlx_parallm.engine.sequence import SamplingParams
from mlx_parallm.errors import InvalidRequestError

_ALIASES = {"temp": "temperature"}
_MAX_LOGPROBS = 20
_Function = TypeVar("_Function", bound=Callable[..., Any])


class GenerateKeywords(TypedDict, total=False):
    """What may be given by keyword; see `mlx_parallm.utils.batch_generate`."""

    max_tokens: int
    temperature: float
    temp: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float] | None
    seed: int | None
    stop: str | tuple[str, ...] | list[str]
    min_tokens: int
    ignore_eos: bool
    logprobs: int | None
    format_prompts: bool
    use_speculative: bool | None
    memory: Any


@dataclass(frozen=True)
class GenerateSettings:
    """The same, each with its value; see `mlx_parallm.utils.batch_generate`.

    Raises:
        InvalidRequestError: a value that makes no sense; `param` names it.
    """

    max_tokens: int = 100
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = field(default=None)
    seed: int | None = None
    stop: str | tuple[str, ...] | list[str] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    format_prompts: bool = False
    use_speculative: bool | None = None
    memory: Any = None

    def __post_init__(self) -> None:
        for name, is_sound in _CHECKS.items():
            value = getattr(self, name)
            if not is_sound(value):
                raise InvalidRequestError(f"{name} cannot be {value!r}", param=name)

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> GenerateSettings:
        """The settings that these keywords mean.

        Raises:
            TypeError: an unknown keyword, or one given by two names.
        """
        return cls(**canonical(keywords))

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def params(self, index: int, room: int, eos: frozenset[int]) -> SamplingParams:
        """What the engine is told for one prompt.

        Args:
            index: the prompt's place; seeds count up with it.
            room: tokens that are left in the context.
            eos: the model's end tokens.
        """
        return SamplingParams(
            max_tokens=min(self.max_tokens, room),
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias or {},
            seed=None if self.seed is None else self.seed + index,
            eos_token_ids=eos,
            min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            logprobs=self.logprobs,
            speculative=self.use_speculative,
        )


def canonical(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords by their own names instead of aliases.

    Raises:
        TypeError: an unknown keyword, with the nearest known one; or one by two names.
    """
    known = {option.name for option in fields(GenerateSettings)}
    found: dict[str, Any] = {}
    for given, value in keywords.items():
        name = _ALIASES.get(given, given)
        if name not in known:
            near = difflib.get_close_matches(given, [*known, *_ALIASES], 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {sorted(known)}"
            raise TypeError(f"there is no setting {given!r}{hint}")
        if name in found:
            raise TypeError(f"{name!r} is given by two names")
        found[name] = value
    return found


def shows_keywords(function: _Function) -> _Function:
    """Let `help` and editors show every keyword of a function that takes `**settings`."""
    signature = inspect.signature(function)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    taken = {parameter.name for parameter in named}
    keywords = [
        inspect.Parameter(
            option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=kind
        )
        for option in fields(GenerateSettings)
        if (kind := option.type) and option.name not in taken
    ]
    function.__signature__ = signature.replace(parameters=[*named, *keywords])  # type: ignore[attr-defined]
    return function


def _whole(value: Any, most: float = math.inf) -> bool:
    return isinstance(value, Integral) and not _flag(value) and 0 <= int(value) <= most


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not _flag(value) and math.isfinite(value)


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _biases(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, Mapping) and all(_whole(k) and _number(v) for k, v in value.items())


def _texts(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value)
    return isinstance(value, tuple | list) and all(isinstance(v, str) and v for v in value)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "max_tokens": _whole,
    "temperature": lambda value: _number(value) and value >= 0,
    "top_p": _share,
    "top_k": _whole,
    "min_p": _share,
    "repetition_penalty": lambda value: _number(value) and value > 0,
    "presence_penalty": _number,
    "frequency_penalty": _number,
    "logit_bias": _biases,
    "seed": lambda value: value is None or (isinstance(value, Integral) and not _flag(value)),
    "stop": _texts,
    "min_tokens": _whole,
    "ignore_eos": _flag,
    "logprobs": lambda value: value is None or _whole(value, _MAX_LOGPROBS),
    "format_prompts": _flag,
    "use_speculative": lambda value: value is None or _flag(value),
}
