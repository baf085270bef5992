"""bench_replicas.py runs against the real smg, and loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchlib import instant_server

from tests.scripts.runner import succeed


def test_clients_through_two_servers(tmp_path: Path) -> None:
    pytest.importorskip("smg", reason="extra `replicas`: pip install smg")
    table = tmp_path / "table.json"
    small = ("--clients", "24", "--prompt", "8", "--output", "4")
    succeed("bench_replicas.py", "--model-path", "instant", *small, "--json", str(table))
    two, one = json.loads(table.read_text())
    assert (one["clients"], one["requests"], one["lost"]) == (12, 12, 0)
    assert (two["clients"], two["requests"], two["lost"]) == (24, 24, 0)
    assert one["tokens/s"] > 0 and two["tokens/s"] > 0


def test_what_the_router_costs(tmp_path: Path) -> None:
    pytest.importorskip("smg", reason="extra `replicas`: pip install smg")
    table = tmp_path / "table.json"
    succeed("bench_replicas.py", "--router", "--router-requests", "64", "--json", str(table))
    plain, stream = json.loads(table.read_text())
    assert plain["lost"] == stream["lost"] == 0
    assert stream["events"] == 64


def test_the_instant_server_answers_whole_requests_only() -> None:
    models = instant_server.answer_to(b"get /v1/models http/1.1", b"")
    assert json.loads(models.partition(b"\r\n\r\n")[2])["data"][0]["id"] == instant_server.MODEL
    stream = instant_server.answer_to(b"post / http/1.1", b'{"stream": true, "max_tokens": 3}')
    assert stream.count(b"data: ") == 4 and stream.endswith(b"0\r\n\r\n")
