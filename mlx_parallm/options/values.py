"""From the text of an option to its value. Each raises ValueError with what was expected."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS |= {_letter: 1000**_power, f"{_letter}B": 1000**_power, f"{_letter}IB": 1024**_power}
_TOKEN_UNITS = {"k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}


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


def size(count: int) -> str:
    """Bytes as parse_bytes reads them, in the largest unit of which they are at least one."""
    for power, letter in reversed(list(enumerate("KMGT", start=1))):
        for base, unit in ((1024, f"{letter}iB"), (1000, f"{letter}B")):
            if count >= base**power and count % base**power == 0:
                return f"{count // base**power}{unit}"
    return f"{count} bytes" if count < 1000 else f"{count / 1000**3:.2f}GB"


def named_path(text: str) -> str:
    """ "name=path", with both.

    Raises:
        ValueError: one is missing.
    """
    name, _, path = text.partition("=")
    if not name.strip() or not path.strip():
        raise ValueError("expected NAME=FOLDER")
    return text


def name_and_path(given: str) -> tuple[str, str]:
    """What requests name a model by, and where it is: "NAME=PATH", or the path for both."""
    name, equals, path = given.partition("=")
    return (name, path) if equals and not Path(given).exists() else (given, given)


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """A parser of whole numbers from `low` to `high`."""
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


def number(low: float, high: float | None = None, *, above: bool = False) -> Callable[[str], float]:
    """A parser of finite numbers from `low` to `high`; above: `low` itself is not allowed."""
    limits = f"above {low:g}" if above else f"of at least {low:g}"
    if high is not None:
        limits = f"above {low:g} and up to {high:g}" if above else f"from {low:g} to {high:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"expected a number {limits}") from None
        # Written so that NaN fails too.
        fits = (low < value if above else low <= value) and value < float("inf")
        if not fits or (high is not None and value > high):
            raise ValueError(f"expected a number {limits}")
        return value

    return parse


@dataclass(frozen=True)
class Choice:
    """A parser that accepts some names, in any case, and other servers' names for them."""

    names: tuple[str, ...]
    also: dict[str, str] = field(default_factory=dict)

    def __call__(self, text: str) -> str:
        """The name that is meant."""
        name = self.also.get(text.lower(), text.lower())
        if name not in self.names:
            raise ValueError(f"expected one of {', '.join(self.names)}")
        return name


def choice(*names: str, **also: str) -> Choice:
    """A parser of one of `names`; also: other words for them."""
    return Choice(names, also)


def filled(text: str) -> str:
    """Any text but the empty one."""
    if not text:
        raise ValueError("expected a value")
    return text


def switch(text: str) -> bool:
    """on or off."""
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("", "0", "false", "no", "off"):
        return False
    raise ValueError("expected true or false")


def context_length(text: str) -> int | None:
    """Tokens from "8192", "32k" (32,000) or "32K" (32,768); "auto" is None, as vLLM has it."""
    if text.lower() in ("auto", "-1"):
        return None
    unit = _TOKEN_UNITS.get(text[-1:], 1)
    try:
        tokens = int(float(text[:-1]) * unit) if unit > 1 else int(text)
    except (ValueError, OverflowError):
        tokens = 0
    if tokens < 1:
        raise ValueError("expected a number of tokens such as 8192 or 32k, or auto")
    return tokens


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError('expected a JSON object such as {"enable_thinking": false}')
    return value
