#!/usr/bin/env python3
"""Random JSON schemas, and whether a server's answers keep to them.

    scripts/schema_maker.py                            # own servers: bundled and random models,
                                                       # with and without guesses
    scripts/schema_maker.py http://127.0.0.1:8000 --schemas 500 --seeds 3

Each answer, at temperature 1.5, has to be valid or to end with "length". Exit code 1 where one
is not.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bench_models
import httpx
import jsonschema_rs
from benchlib.servers import our_command, spawn

_AT_ONCE = 32
_WORDS = "name age city code list of things total price is_open größe 名前 a b c".split()


def make(seed: int) -> dict[str, Any]:
    """A schema; the same one for the same seed."""
    maker = _Maker(random.Random(seed))
    schema = maker.schema(3)
    return {**schema, "$defs": maker.named} if maker.named else schema


class _Maker:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.named: dict[str, Any] = {}  # what is referred to

    def schema(self, depth: int) -> dict[str, Any]:
        """Of at most this many levels."""
        rng = self._rng
        simple = [self._number, self._string, self._choice]
        if depth <= 0 or rng.random() < 0.2:
            return rng.choice(simple)()
        kind = rng.random()
        if kind < 0.55:
            return self._object(depth)
        if kind < 0.8:
            return self._array(depth)
        if kind < 0.9:
            return {"anyOf": [self.schema(depth - 1) for _ in range(rng.randint(1, 3))]}
        inner, name = self.schema(depth - 1), f"part{len(self.named)}"
        self.named[name] = inner
        return {"$ref": f"#/$defs/{name}"}

    def _object(self, depth: int) -> dict[str, Any]:
        rng = self._rng
        names = rng.sample(_WORDS, rng.randint(0, 5))
        made: dict[str, Any] = {
            "type": "object",
            "properties": {name: self.schema(depth - 1) for name in names},
            "required": [name for name in names if rng.random() < 0.6],
        }
        if rng.random() < 0.8:
            made["additionalProperties"] = False
        return made

    def _array(self, depth: int) -> dict[str, Any]:
        least = self._rng.randint(0, 2)
        made = {"type": "array", "items": self.schema(depth - 1), "minItems": least}
        return made | {"maxItems": least + self._rng.randint(0, 3)}

    def _number(self) -> dict[str, Any]:
        rng = self._rng
        made: dict[str, Any] = {"type": rng.choice(["integer", "number"])}
        if rng.random() < 0.7:
            made["minimum"] = rng.randint(-1000, 10)
            made[rng.choice(["maximum", "exclusiveMaximum"])] = rng.randint(11, 5000)
        if made["type"] == "integer" and rng.random() < 0.2:
            made["multipleOf"] = rng.choice([2, 3, 5])
        return made

    def _string(self) -> dict[str, Any]:
        rng = self._rng
        forms: list[dict[str, Any]] = [
            {"maxLength": rng.randint(1, 20)},
            {"minLength": 1, "maxLength": 8},
            {"pattern": rng.choice(["^[a-z]{2,8}$", "^\\d{3}-\\d{4}$", "^(ab|c)*$", "é+"])},
            {"format": rng.choice(["date", "time", "uuid", "ipv4"])},
        ]
        return {"type": "string", **rng.choice(forms)}

    def _choice(self) -> dict[str, Any]:
        values = [
            "red",
            "größe",
            'with "quotes"',
            "line\nbreak",
            7,
            -1.5,
            None,
            True,
            [1],
            {"a": 1},
        ]
        return {"enum": self._rng.sample(values, self._rng.randint(1, 4))}


def ask(client: httpx.Client, schema: dict[str, Any], seed: int) -> str:
    """valid, length, refused, or what is wrong."""
    body = {
        "prompt": "JSON: ",
        "json_schema": schema,
        "temperature": 1.5,
        "seed": seed,
        "max_tokens": 300,
    }
    response = client.post("/v1/completions", json=body)
    if response.status_code == 400 and "grammar_failed" not in response.text:
        return "refused"
    if response.status_code != 200:
        return f"status {response.status_code}: {response.text}"
    choice = response.json()["choices"][0]
    if choice["finish_reason"] == "length":
        return "length"
    try:
        value = json.loads(choice["text"], parse_float=_number)
        good = jsonschema_rs.Draft202012Validator(schema).is_valid(value)
    except ValueError:
        good = False
    return "valid" if good else f"invalid: {choice['text']!r} for {json.dumps(schema)}"


def _number(text: str) -> float:
    """JSON has numbers that are too large for a float; the largest one stands for them."""
    value, largest = float(text), sys.float_info.max
    return max(-largest, min(value, largest))


def ask_all(url: str, schemas: int, seeds: int) -> Counter[str]:
    """How many answers were what."""
    cases = [(place, seed) for place in range(schemas) for seed in range(seeds)]
    with (
        httpx.Client(base_url=url, timeout=600) as client,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        return Counter(pool.map(lambda case: ask(client, make(case[0]), case[1]), cases))


def _own_servers() -> Iterator[tuple[str, str]]:
    """Name and address of one server after the other."""
    for name, folder in (("bundled", "bundled"), ("random", bench_models.ensure("tiny"))):
        for guesses in ((), ("--speculative", "ngram")):
            with spawn(name, our_command(folder, *guesses)) as server:
                yield " ".join([name, *guesses]), server.url


def main() -> int:
    """Ask for all of them; print how many were what."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("server", nargs="?", help="address; without one, servers are started")
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    servers = _own_servers() if asked.server is None else [(asked.server, asked.server)]
    wrong = False
    for name, url in servers:
        kinds = ask_all(url, asked.schemas, asked.seeds)
        print(f"{name}:", ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
        wrong |= bool(set(kinds) - {"valid", "length", "refused"})
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
