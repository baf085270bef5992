"""Several keys: a file of them, limits a minute, shares of the batch."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Any

import pytest

from mlx_parallm.errors import RateLimitError
from mlx_parallm.options.key_file import read_key_file
from mlx_parallm.options.loading import load_settings
from mlx_parallm.server.gate.allowance import Allowance
from mlx_parallm.server.gate.clients import Clients
from mlx_parallm.settings import SettingsError

COMPLETIONS = "/v1/completions"
TABLES = """
[alice]
key = "sk-alice"
weight = 2
requests-per-minute = 2

[bob]
key = "sk-bob"
tokens-per-minute = 20
"""


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(TABLES)
    return path


def headers(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def ask(server: Any, key: str, **body: Any) -> Any:
    return server.http.post(COMPLETIONS, headers=headers(key), json={"prompt": "x", **body})


def test_keys_of_a_file_open_the_door(serve: Any, key_file: Path) -> None:
    server = serve(api_key=("extra",), api_key_file=str(key_file))
    for key in ("sk-alice", "sk-bob", "extra"):
        assert server.http.get("/v1/models", headers=headers(key)).status_code == 200
        assert server.http.get("/v1/models", headers={"x-api-key": key}).status_code == 200
    assert server.http.get("/v1/models", headers=headers("sk-carol")).status_code == 401
    assert server.http.get("/v1/models").status_code == 401


def test_all_keys_are_compared_whichever_it_is(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time that it takes tells nothing about a key."""
    clients = Clients(read_key_file(key_file))
    compare, compared = hmac.compare_digest, list[bytes]()

    def noting(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", noting)
    for given in (b"sk-alice", b"sk-bob", b"sk-bo", b"", b"x" * 999):
        compared.clear()
        clients.find(given)
        assert len(set(compared)) == 2
        assert len({len(digest) for digest in compared}) == 1


def test_requests_a_minute(serve: Any, key_file: Path) -> None:
    server = serve(api_key_file=str(key_file))
    first, second, third = (ask(server, "sk-alice", max_tokens=2) for _ in range(3))
    assert first.status_code == second.status_code == 200
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    assert third.status_code == 429
    assert third.json()["error"]["code"] == "requests_per_minute_exceeded"
    assert 1 <= int(third.headers["retry-after"]) <= 60
    # Looking is free, and others have limits of their own.
    assert server.http.get("/v1/models", headers=headers("sk-alice")).status_code == 200
    assert ask(server, "sk-bob", max_tokens=2).status_code == 200


def test_tokens_a_minute_are_paid_before_the_next_request(serve: Any, key_file: Path) -> None:
    server = serve(api_key_file=str(key_file))
    assert ask(server, "sk-bob", max_tokens=30, ignore_eos=True).status_code == 200
    refused = ask(server, "sk-bob", max_tokens=1)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "tokens_per_minute_exceeded"
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
    assert int(refused.headers["retry-after"]) > 1


def test_limits_for_every_key(serve: Any) -> None:
    server = serve(api_key=("a", "b"), requests_per_minute=1)
    for key in ("a", "b"):
        assert ask(server, key).status_code == 200
        assert ask(server, key).status_code == 429


def test_the_limits_error_has_the_shape_of_the_api_that_was_called(serve: Any) -> None:
    server = serve(api_key=("a",), requests_per_minute=1)
    body = {"model": "parrot", "max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}
    answers = [
        server.http.post("/v1/messages", headers={"x-api-key": "a"}, json=body) for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[1].json()["type"] == "error"
    assert answers[1].json()["error"]["type"] == "rate_limit_error"


def test_sequences_know_whose_they_are(serve: Any, key_file: Path) -> None:
    server = serve(api_key_file=str(key_file))
    ask(server, "sk-alice")
    server.http.post(COMPLETIONS, headers=headers("sk-bob"), json={"prompt": "x", "stream": True})
    clients = [sequence.client for sequence in server.engine.submitted]
    assert [(c.name, c.weight) for c in clients] == [("alice", 2.0), ("bob", 1.0)]


def test_a_bucket_fills_with_time() -> None:
    now = [0.0]
    allowance = Allowance(60, None, clock=lambda: now[0])
    for _ in range(60):
        assert allowance.take_request() is None
    refused = allowance.take_request()
    assert isinstance(refused, RateLimitError) and refused.retry_after_s == 1
    now[0] += 1.0
    assert allowance.take_request() is None and allowance.take_request() is not None
    now[0] += 3600.0
    assert (b"x-ratelimit-remaining-requests", b"60") in allowance.headers()


def test_a_file_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nsk-one\n\n  sk-two  \n")
    assert [(entry.name, entry.key) for entry in read_key_file(path)] == [
        ("line-2", "sk-one"),
        ("line-4", "sk-two"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("keys", "# nothing\n", "no key"),
        ("keys", "secret\nsecret\n", "the same"),
        ("keys.toml", "[a]\nkey = 'secret", "not TOML"),
        ("keys.toml", "[a]\nkey = 3\n", "`key`"),
        ("keys.toml", "[a]\nkey = 'secret'\nwieght = 2\n", "wieght"),
        ("keys.toml", "[a]\nkey = 'secret'\nweight = 0\n", "`weight`"),
        ("keys.toml", "[a]\nkey = 'secret'\ntokens-per-minute = 1.5\n", "tokens-per-minute"),
        ("keys.toml", "key = 'secret'\n", "table"),
    ],
)
def test_a_broken_key_file_is_a_sentence_without_keys(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(SettingsError, match="--api-key-file") as caught:
        load_settings(["--api-key-file", str(path)], {})
    assert told in str(caught.value) and "secret" not in str(caught.value)


def test_limits_without_keys_are_refused() -> None:
    with pytest.raises(SettingsError, match="--api-key"):
        load_settings(["--requests-per-minute", "3"], {})
