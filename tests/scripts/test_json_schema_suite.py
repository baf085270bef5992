"""The judge of the JSON-Schema-Test-Suite, on a few cases of each kind."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import json_schema_suite as suite

CASES: dict[str, list[tuple[Any, list[tuple[Any, bool]]]]] = {
    "type": [({"type": "integer"}, [(1, True), (1.0, True), (1.5, False), ("1", False)])],
    "enum": [({"enum": ["a", [1], {"x": None}]}, [([1], True), ({"x": None}, True), ("b", False)])],
    "required": [
        (
            {"properties": {"a": {}, "b": {}}, "required": ["b", "a"]},
            [({"a": 1, "b": [2]}, True), ({"b": 1, "a": 2}, True), ({"a": 1}, False)],
        )
    ],
    "pattern": [({"type": "string", "pattern": "^a+$"}, [("aaa", True), ("ab", False)])],
    "not": [({"not": {"type": "string"}}, [(1, True), ("a", False)])],
    "items": [
        (
            {"type": "array", "prefixItems": [{"type": "string"}], "items": {"minimum": 3}},
            [(["é", 3], True), (["a", 2], False), ([], True), ([1], False)],
        )
    ],
}


def test_every_answer_is_right_or_refused(tmp_path: Path) -> None:
    for name, groups in CASES.items():
        written = [
            {
                "description": name,
                "schema": schema,
                "tests": [
                    {"description": str(data), "data": data, "valid": valid}
                    for data, valid in tests
                ],
            }
            for schema, tests in groups
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(written), encoding="utf8")
    table = asyncio.run(suite.judge_with_a_server(tmp_path))
    assert table["not"] == {"refused": 2}
    for name, counts in table.items():
        assert counts["wrong"] == 0
        assert name == "not" or counts == {"passed": sum(counts.values())}
    assert "| all | " in suite.table_text(table)


def test_an_invalid_answer_is_seen() -> None:
    assert not suite.is_valid({"type": "integer"}, '"x"')
    assert not suite.is_valid({}, "{")
    assert suite.is_valid({"type": "integer"}, "1.0")
