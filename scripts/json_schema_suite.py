#!/usr/bin/env python3
"""The JSON-Schema-Test-Suite (2020-12) through the server: what is right, refused, or wrong.

    scripts/json_schema_suite.py                  # the suite that jsonschema's source package has
    scripts/json_schema_suite.py SOME/FOLDER      # with the suite's *.json

It prints the table in Markdown. The package is downloaded once and kept.

A model that repeats its prompt is asked for each instance under its schema. A valid one has to
come back (in some order of its keys: the grammar has the schema's); an invalid one must not.

passed: so it was. refused: a 400 that says why. narrower: a valid instance that the grammar does
not have. wrong: an answer that is not valid. Only the last is a fault.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
from benchlib.copy_model import copy_model

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.places import cache_folder
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings

_AT_ONCE = 24
_MOST_ORDERS = 24
_PACKAGE = "jsonschema-4.26.0"
_KINDS = ("passed", "refused", "narrower", "wrong")


async def judge(client: httpx.AsyncClient, schema: Any, instance: Any, *, valid: bool) -> str:
    """One of _KINDS for a case."""
    for text in itertools.islice(spellings(instance), _MOST_ORDERS if valid else 1):
        body = {
            "prompt": text + "<|again|>",
            "structured_outputs": {"json": schema},
            "temperature": 0,
            "max_tokens": len(text.encode()) + 64,
        }
        response = await client.post("/v1/completions", json=body)
        if response.status_code == 400:
            message = response.json()["error"]["message"]
            return "refused" if "structured_outputs.json" in message else "wrong"
        response.raise_for_status()
        choice = response.json()["choices"][0]
        if choice["finish_reason"] == "stop" and not is_valid(schema, choice["text"]):
            return "wrong"
        if (choice["text"] == text) is valid:
            return "passed"
    return "narrower" if valid else "wrong"


def is_valid(schema: Any, text: str) -> bool:
    """By another implementation."""
    try:
        return bool(jsonschema_rs.Draft202012Validator(schema).is_valid(json.loads(text)))
    except ValueError:
        return False


def spellings(instance: Any) -> Iterator[str]:
    """JSON texts of an instance: in the orders of its keys, whole numbers without a point."""
    for value in _orders(instance):
        yield json.dumps(value, ensure_ascii=False)


def _orders(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for keys in itertools.permutations(value):
            for values in itertools.product(*(list(_orders(value[key])) for key in keys)):
                yield dict(zip(keys, values, strict=True))
    elif isinstance(value, list):
        yield from map(list, itertools.product(*(list(_orders(item)) for item in value)))
    else:
        whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
        yield int(value) if whole else value


async def judge_folder(folder: Path, client: httpx.AsyncClient) -> dict[str, Counter[str]]:
    """Keyword -> how many of its cases are what."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(name: str, schema: Any, test: dict[str, Any]) -> tuple[str, str]:
        async with room:
            kind = await judge(client, schema, test["data"], valid=test["valid"])
        if kind == "wrong":
            print("wrong:", name, test["description"], json.dumps(schema), file=sys.stderr)
        return name, kind

    tasks = [
        one(path.stem, group["schema"], test)
        for path in sorted(folder.glob("*.json"))
        for group in json.loads(path.read_text(encoding="utf8"))
        for test in group["tests"]
    ]
    table: dict[str, Counter[str]] = {}
    for name, kind in await asyncio.gather(*tasks):
        table.setdefault(name, Counter())[kind] += 1
    return table


async def judge_with_a_server(folder: Path) -> dict[str, Counter[str]]:
    """The same, with a server of its own."""
    engine = Engine(copy_model, EngineConfig(max_batch_size=32, max_queue=1000))
    app = create_app(Settings(served_model_name=("copy",)), engine)
    async with app.router.lifespan_context(app):
        while engine.state == "loading":
            await asyncio.sleep(0.01)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await judge_folder(folder, client)


def table_text(table: dict[str, Counter[str]]) -> str:
    """As Markdown, all together last."""
    total = sum(table.values(), Counter())
    lines = ["| keyword | " + " | ".join(_KINDS) + " |", "|---|" + "---:|" * len(_KINDS)]
    for name, counts in [*table.items(), ("all", total)]:
        lines.append(f"| {name} | " + " | ".join(str(counts[kind]) for kind in _KINDS) + " |")
    return "\n".join(lines)


def suite_folder() -> Path:
    """The suite out of a source package; from the user's cache, where it was downloaded before."""
    folder = cache_folder("json-schema-suite")
    archive = folder / f"{_PACKAGE}.tar.gz"
    if not archive.exists():
        name, version = _PACKAGE.split("-")
        download = ["download", "-q", "--no-deps", "--no-binary", name, "--dest", str(folder)]
        subprocess.run([sys.executable, "-m", "pip", *download, f"{name}=={version}"], check=True)
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / _PACKAGE / "json" / "tests" / "draft2020-12"


def main() -> int:
    """Print the table; 1 where an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="tests/draft2020-12 of the suite")
    table = asyncio.run(judge_with_a_server(parser.parse_args().folder or suite_folder()))
    print(table_text(table))
    return int(any(counts["wrong"] for counts in table.values()))


if __name__ == "__main__":
    raise SystemExit(main())
