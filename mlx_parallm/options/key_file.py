"""The file of --api-key-file: who may use the server, and how much of it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FIELDS = ("key", "weight", "requests-per-minute", "tokens-per-minute")


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One client.

    Attributes:
        name: in logs and metrics; never the key.
        weight: of its part of the batch where several clients want more than there is.
        requests_per_minute, tokens_per_minute: None is the server's own limit.
    """

    name: str
    key: str
    weight: float = 1.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __repr__(self) -> str:
        """Without the key."""
        return f"KeyEntry({self.name!r})"


def read_key_file(path: Path) -> list[KeyEntry]:
    """The clients in a file: a key a line ("#" begins a comment), or, in a .toml, tables.

        [alice]
        key = "sk-..."
        weight = 2
        requests-per-minute = 60
        tokens-per-minute = 100000

    Raises:
        ValueError: what is wrong with it, without any key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ValueError(str(reason)) from None
    entries = _tables(text) if path.suffix == ".toml" else _lines(text)
    if not entries:
        raise ValueError("there is no key in it")
    if len({entry.key for entry in entries}) < len(entries):
        raise ValueError("two of its keys are the same")
    return entries


def _lines(text: str) -> list[KeyEntry]:
    keys = [line.strip() for line in text.splitlines()]
    return [
        KeyEntry(f"line-{number}", key)
        for number, key in enumerate(keys, start=1)
        if key and not key.startswith("#")
    ]


def _tables(text: str) -> list[KeyEntry]:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # The message may quote a line with a key in it; the position does not.
        where = str(error).rpartition("(at ")[2].rstrip(")")
        raise ValueError(f"not TOML at {where}") from None
    return [_entry(name, table) for name, table in tables.items()]


def _entry(name: str, table: Any) -> KeyEntry:
    if not isinstance(table, Mapping):
        raise ValueError(f"{name}: expected a table such as [{name}]")
    unknown = [field for field in table if field not in _FIELDS]
    if unknown:
        raise ValueError(f"[{name}]: unknown {unknown[0]!r}; known are {', '.join(_FIELDS)}")
    key = table.get("key")
    if not isinstance(key, str) or not key.strip():
        raise ValueError(f"[{name}]: `key` must be a text")
    weight = table.get("weight", 1.0)
    if not _is_number(weight) or not 0 < weight <= 1000:
        raise ValueError(f"[{name}]: `weight` must be above 0 and at most 1000")
    return KeyEntry(
        name,
        key.strip(),
        float(weight),
        _limit(name, table, "requests-per-minute"),
        _limit(name, table, "tokens-per-minute"),
    )


def _limit(name: str, table: Mapping[str, Any], field: str) -> int | None:
    value = table.get(field)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"[{name}]: `{field}` must be a whole number above 0")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
