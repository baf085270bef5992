"""cache_salt and --prefix-isolation: a client cannot see what another one's prompts left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.options.loading import load_settings
from mlx_parallm.settings import Settings, SettingsError

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
PROMPT = "a prompt that is longer than a page of the prefix cache, so that it is kept. " * 2


@pytest.fixture
def start(serve: Callable[..., Any], llama_factory: Callable[..., LoadedModel]) -> Any:
    """Starts a server with a real prefix cache."""
    return lambda **settings: serve(Engine(llama_factory, EngineConfig()), **settings)


def ask(server: Any, path: str = COMPLETIONS, key: str | None = None, **more: Any) -> Any:
    body: dict[str, Any] = {"max_tokens": 1, "temperature": 0, **more}
    if path == CHAT:
        body["messages"] = [{"role": "user", "content": PROMPT}]
    else:
        body["prompt"] = PROMPT
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    answer = server.http.post(path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def cached(server: Any, path: str = COMPLETIONS, key: str | None = None, **more: Any) -> int:
    """How many of the prompt's tokens were found in the cache."""
    return int(ask(server, path, key, **more)["usage"]["prompt_tokens_details"]["cached_tokens"])


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_prefixes_are_found_with_the_same_salt_only(start: Any, path: str) -> None:
    server = start()
    assert cached(server, path) == 0 and cached(server, path) > 0
    assert cached(server, path, cache_salt="one") == 0
    assert cached(server, path, cache_salt="one") > 0
    assert cached(server, path, cache_salt="two") == 0
    assert cached(server, path, cache_salt=None) > 0


def test_a_salt_changes_no_answer(start: Any) -> None:
    server = start()
    texts = [
        ask(server, max_tokens=12, cache_salt=salt)["choices"][0]["text"]
        for salt in (None, "one", "one")
    ]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/embeddings", {"input": PROMPT}),
        ("/v1/score", {"prompt": PROMPT, "continuations": ["x"]}),
        ("/v1/rerank", {"query": "x", "documents": [PROMPT]}),
        ("/generate", {"prompt": PROMPT, "max_tokens": 1}),
        ("/v1/generate", {"prompt": PROMPT, "max_tokens": 1}),
        ("/v1/generate_batch", {"prompts": [PROMPT], "max_tokens": 1}),
    ],
)
def test_every_route_that_leaves_prefixes_has_the_field(
    start: Any, path: str, field: dict[str, Any]
) -> None:
    server = start()
    server.ok(path, **field, cache_salt="theirs")
    assert cached(server) == 0
    server.ok(path, **field, cache_salt="mine")
    assert cached(server, cache_salt="mine") > 0
    for wrong in ("", 5):
        answer = server.post(path, **field, cache_salt=wrong)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "cache_salt"


@pytest.mark.parametrize(
    ("settings", "apart"),
    [
        ({"api_key": ("a", "b")}, True),
        ({"api_key": ("a", "b"), "prefix_isolation": "none"}, False),
        ({"api_key": ("a", "b"), "prefix_isolation": "key"}, True),
    ],
)
def test_api_keys_have_prefixes_of_their_own(
    start: Any, settings: dict[str, Any], apart: bool
) -> None:
    server = start(**settings)
    assert cached(server, key="a") == 0 and cached(server, key="a") > 0
    assert (cached(server, key="b") == 0) is apart
    # A salt is apart from no salt, and one key's salt from another key's.
    assert cached(server, key="a", cache_salt="s") == 0
    assert cached(server, key="a", cache_salt="s") > 0
    assert (cached(server, key="b", cache_salt="s") == 0) is apart


def test_one_key_shares_by_default() -> None:
    assert not Settings().isolates_keys and not Settings(api_key=("a",)).isolates_keys
    assert not Settings(api_key=("a", "a")).isolates_keys
    assert Settings(api_key=("a", "b")).isolates_keys
    assert load_settings(["--prefix-isolation", "key"], {}).isolates_keys
    with pytest.raises(SettingsError, match="none, key"):
        load_settings(["--prefix-isolation", "user"], {})


def test_the_openai_client_sends_the_salt(start: Any) -> None:
    import openai

    server = start()
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")

    def ask_once(salt: str) -> int:
        answer = client.chat.completions.create(
            model="parrot",
            messages=[{"role": "user", "content": PROMPT}],
            max_tokens=1,
            extra_body={"cache_salt": salt},
        )
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    assert ask_once("one") == 0 and ask_once("one") > 0 and ask_once("two") == 0
    client.close()
