"""Every example of the documents that this project grew from, run; docs/seeds.md lists them.

Examples in Python that need no server are in tests/mili, tests/test_mili_reference.py,
tests/test_custom_integration.py and tests/memory/test_manager.py.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import requests

from mlx_parallm import mili
from mlx_parallm.server.main import build_engine, create_app
from mlx_parallm.settings import Settings
from mlx_parallm.utils import batch_generate, close, load, stream_generate
from tests.server.conftest import Served
from tests.waiting import PATIENCE_S, wait_until

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "seeds.md"
JSON = ("-H", "Content-Type: application/json")
SNAKE: dict[str, Any] = {
    "prompt": "Mamba is a type of snake that",
    "max_tokens": 30,
    "temperature": 0.8,
    "include_top_k_candidates": True,
}
TEXT = "Alexander Grothendieck became a French citizen in 1971."


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """The bundled model, with the settings of a server that was started without options."""
    settings = Settings()
    engine = build_engine(settings)
    served = Served(create_app(settings, engine), engine, 0.5)
    served.wait_ready()
    yield served
    served.stop()
    served.join()


def shell(*command: str, stdin: str | None = None) -> str:
    """The output of a command, which must succeed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    answer = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def curl(server: Served, path: str, body: dict[str, Any], *options: str) -> str:
    """As the documents call it."""
    return shell("curl", "-s", *options, server.url + path, *JSON, "-d", json.dumps(body))


# The server's README: completions, chat, batches, perplexity


def test_completions_with_curl(server: Served) -> None:
    asked = {"prompt": "The capital of France is", "max_tokens": 16, "temperature": 0.7}
    text = curl(server, "/v1/completions", asked | {"top_p": 1.0})
    assert shell("jq", "-r", ".choices[0].text", stdin=text).strip()
    named = curl(server, "/v1/completions", asked | {"model": "bundled"})
    assert json.loads(named)["model"] == "bundled"
    scored = asked | {"max_tokens": 8, "temperature": 0.0, "logprobs": 5, "echo": True}
    logprobs = json.loads(curl(server, "/v1/completions", scored))["choices"][0]["logprobs"]
    lengths = {len(logprobs[n]) for n in ("tokens", "token_logprobs", "top_logprobs")}
    assert lengths == {len(logprobs["text_offset"])}


def test_chat_with_curl(server: Served) -> None:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is quantum computing?"},
    ]
    asked = {"messages": messages, "max_tokens": 40, "temperature": 0.7}
    answer = curl(server, "/v1/chat/completions", asked)
    assert shell("jq", "-r", ".choices[0].message.content", stdin=answer).strip()
    stream = curl(server, "/v1/chat/completions", asked | {"stream": True}, "-N")
    assert stream.rstrip().endswith("data: [DONE]")
    assert '"delta"' in stream


def test_concurrent_requests_with_aiohttp(server: Served) -> None:
    prompts = ["The meaning of life is", "Machine learning is", "Python was created by"]

    async def ask(session: aiohttp.ClientSession, prompt: str) -> str:
        body = {"model": "bundled", "prompt": prompt, "max_tokens": 20, "temperature": 0.0}
        async with session.post(f"{server.url}/v1/completions", json=body) as response:
            return str((await response.json())["choices"][0]["text"])

    async def everybody() -> list[str]:
        async with aiohttp.ClientSession() as session:
            return await asyncio.gather(*(ask(session, prompt) for prompt in prompts))

    together = asyncio.run(everybody())
    alone = [server.ok("/v1/completions", prompt=p, max_tokens=20, temperature=0) for p in prompts]
    assert together == [answer["choices"][0]["text"] for answer in alone]


def test_the_perplexity_sketch_with_its_mend(server: Served, tmp_path: Path) -> None:
    """The first token has no odds, so its entry is null, and the one that was made is not scored.

    The sketch sums all of them. scripts/perplexity.py scores the text and nothing else.
    """
    body: dict[str, Any] = {
        "prompt": TEXT,
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": 5,
        "echo": True,
    }
    answer = requests.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE_S).json()
    lps = answer["choices"][0]["logprobs"]["token_logprobs"]
    assert lps[0] is None
    with pytest.raises(TypeError):
        sum(lps)
    avg_nll = -sum(lps[1:]) / len(lps[1:])
    assert math.exp(avg_nll) > 1
    exactly = body | {"max_tokens": 0}
    answer = requests.post(f"{server.url}/v1/completions", json=exactly, timeout=PATIENCE_S).json()
    text_only = answer["choices"][0]["logprobs"]["token_logprobs"][1:]
    # float32, in a forward of another width.
    assert text_only == pytest.approx(lps[1:-1], abs=1e-3)
    (tmp_path / "text.txt").write_text(TEXT)
    report = tmp_path / "report.json"
    script = [sys.executable, str(ROOT / "scripts" / "perplexity.py"), str(tmp_path / "text.txt")]
    shell(*script, "--url", server.url, "--json", str(report))
    total = json.loads(report.read_text())["total"]
    assert total["perplexity"] == pytest.approx(
        math.exp(-sum(text_only) / len(text_only)), rel=1e-2
    )


def test_batch_generate(capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load("bundled")
    try:
        prompts = [f"What is {i} + {i}?" for i in range(10)]
        responses = batch_generate(
            model,
            tokenizer,
            prompts=prompts,
            max_tokens=20,
            verbose=True,
            format_prompts=True,
            temp=0.0,
        )
        assert len(responses) == 10 and all(responses)
        assert "10/10" in capsys.readouterr().err
    finally:
        close(model)


# The Mamba2 API


def test_generate_with_requests(server: Served) -> None:
    asked: dict[str, Any] = SNAKE | {"top_k": 50, "top_p": 0.9, "repetition_penalty": 1.2}
    response = requests.post(f"{server.url}/generate", json=asked, timeout=PATIENCE_S)
    result = response.json()
    assert result["generated_text"].startswith(SNAKE["prompt"])
    assert result["quality_metrics"]["perplexity"] >= 1
    assert {len(s["top_k_candidates"]) for s in result["generation_steps"]} == {50}
    simple = requests.post(
        f"{server.url}/generate", json={"prompt": "Hello", "max_tokens": 5}, timeout=PATIENCE_S
    ).json()
    assert simple["generated_text"] == "Hello" + simple["generated_only"]
    status = requests.get(f"{server.url}/status/{simple['request_id']}", timeout=PATIENCE_S).json()
    assert status["status"] == "completed"


def test_generate_with_curl(server: Served) -> None:
    answer = json.loads(curl(server, "/generate", SNAKE, "-X", "POST"))
    assert answer["generated_text"] == answer["prompt"] + answer["generated_only"]


def test_generate_with_fetch(server: Served) -> None:
    program = f"""
        const response = await fetch('{server.url}/generate', {{
            method: 'POST',
            headers: {{ 'Content-Type': 'application/json' }},
            body: JSON.stringify({json.dumps(SNAKE)}),
        }});
        console.log((await response.json()).generated_text);
    """
    said = shell("node", "--input-type=module", "-e", program)
    assert said.startswith(str(SNAKE["prompt"]))


def test_health_and_model_info(server: Served) -> None:
    health = server.http.get("/health").json()
    ready = {"model_loaded": True, "tokenizer_loaded": True, "scheduler_ready": True}
    assert health | {"status": "healthy"} | ready == health
    info = server.http.get("/model_info").json()
    assert info["config"]["model_type"] and info["device"]
    for page in ("/docs", "/redoc", "/openapi.json"):
        assert server.http.get(page).status_code == 200


def test_the_app_of_an_asgi_server() -> None:
    """`uvicorn api_server:app` in the repository's root."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "api_server:app", "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE
    )
    try:
        url = f"http://127.0.0.1:{port}"

        def is_healthy() -> bool:
            try:
                return httpx.get(f"{url}/health", timeout=PATIENCE_S).status_code == 200
            except httpx.TransportError:
                assert process.poll() is None, process.communicate()[1].decode()
                return False

        wait_until(is_healthy)
        answer = httpx.post(
            f"{url}/generate", json={"prompt": "Hello", "max_tokens": 3}, timeout=PATIENCE_S
        )
        assert answer.json()["statistics"]["generated_tokens"] >= 1
        assert httpx.get(f"{url}/docs", timeout=PATIENCE_S).status_code == 200
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_S)


def test_the_program_of_that_name() -> None:
    said = shell(sys.executable, str(ROOT / "api_server.py"), "--help")
    assert "--model-path" in said


# The advanced engine


def test_one_text_and_several_with_curl(server: Served) -> None:
    asked = {"max_tokens": 20, "temperature": 0.7}
    one = {"prompt": "Explain what a firewall is", "top_p": 0.95, "use_speculative": True, **asked}
    assert json.loads(curl(server, "/v1/generate", one, "-X", "POST"))["text"]
    stream = curl(server, "/v1/generate", one | {"stream": True}, "-X", "POST")
    assert stream.rstrip().endswith("data: [DONE]")
    several = {"prompts": ["First prompt", "Second prompt", "Third prompt"], **asked}
    assert len(json.loads(curl(server, "/v1/generate_batch", several))["results"]) == 3


def test_stats_and_configure(server: Served) -> None:
    server.ok("/v1/generate", prompt="3 + 4 =", max_tokens=4)
    stats = server.http.get("/v1/stats").json()
    assert stats["total_requests"] > 0 and stats["average_latency"] > 0
    assert {"total_batches", "avg_batch_size", "total_tokens"} <= set(stats["batching_stats"])
    assert {"acceptance_rate", "draft_length"} <= set(stats["speculative_stats"])
    assert stats["batching_stats"]["avg_batch_size"] >= 1
    url = f"{server.url}/v1/configure?use_speculative_decoding=true&max_batch_size=16"
    config = json.loads(shell("curl", "-s", "-X", "POST", url))["config"]
    assert (config["use_speculative_decoding"], config["max_batch_size"]) == (True, 16)


def test_the_advanced_client(server: Served) -> None:
    script = str(ROOT / "scripts" / "test_advanced_client.py")
    said = shell(sys.executable, script, "--url", server.url)
    for name in ("single", "batch", "stream", "stats", "configure"):
        assert f"{name}: " in said
    unreachable = subprocess.run(
        [sys.executable, script, "--url", "http://127.0.0.1:9"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert unreachable.returncode == 1
    assert "127.0.0.1:9" in unreachable.stderr and "Traceback" not in unreachable.stderr


def test_the_names_of_extended_mind() -> None:
    """The documented names stand for what a loaded model really uses."""
    doors = importlib.import_module("mlx_parallm.models.llama_extended")
    model, tokenizer = load("bundled", use_extended_mind=True)
    try:
        assert isinstance(model.memories, doors.ExtendedModel)
        assert isinstance(model.memories.manager, doors.ExtendedLlamaModel)
        model.add_memories(tokenizer.encode(TEXT))
        asked = doors.ExtendedModelArgs(topk=1000, position="contiguous", citations="span")
        pieces = stream_generate(
            model, tokenizer, "Anna has a", max_tokens=8, ignore_eos=True, memory=vars(asked)
        )
        cited = list(pieces)[-1].citations
        assert cited is not None and cited[0]["collection"] == "default"
    finally:
        close(model)
    with pytest.raises(AttributeError):
        _ = doors.ExtendedNothing


def test_documented_import_paths() -> None:
    """A documented path leads to the thing itself, not to a second one."""
    for path, home in (
        ("models.base.BatchedKVCache", "cache.batch.BatchedKVCache"),
        ("models.llama_extended.ExtendedModelArgs", "memory.manager.MemorySettings"),
        ("models.llama_extended.ExtendedAttention", "cache.extended_mind.MemoryForward"),
        ("models.llama_extended.ExtendedTransformerBlock", "cache.kv_cache.BatchedKVCache"),
        ("engine.requests.ContinuousBatchScheduler", "engine.requests.RequestScheduler"),
        *((f"mili.{name}", f"{home}.{name}") for name, home in mili._HOMES.items()),
    ):
        found, right = (_named(f"mlx_parallm.{dotted}") for dotted in (path, home))
        assert found is right, path
    assert set(mili.__all__) <= set(dir(mili))
    with pytest.raises(AttributeError):
        _ = mili.Qwen4Model


def test_the_documents_defaults() -> None:
    config = mili.Qwen3Config()
    shape = (config.hidden_size, config.intermediate_size, config.num_hidden_layers)
    assert shape == (4096, 11008, 32)
    heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
    assert heads == (32, 8, 128)
    assert (config.vocab_size, config.max_position_embeddings) == (150000, 32768)
    assert (config.hidden_act, config.rms_norm_eps) == ("silu", 1e-6)
    assert (config.attention_dropout, config.rope_theta) == (0.0, 10000.0)
    assert config.rope_scaling is None
    defaults: dict[Any, dict[str, Any]] = {
        mili.KVCacheAllocator: {"max_batch_size": 64, "max_seq_length": 32768},
        mili.Qwen3Model.generate: {
            "max_tokens": 128,
            "temperature": 1.0,
            "top_p": 0.95,
            "top_k": 50,
        },
        mili.Sampler.top_k_top_p_sampling: {"temperature": 1.0, "top_k": 50, "top_p": 0.95},
        mili.QwenTokenizer.batch_encode: {"max_length": 2048, "padding": True},
        mili.ContinuousBatchScheduler: {
            "max_batch_size": 64,
            "prefill_batch_size": 32,
            "decode_batch_size": 256,
            "max_seq_length": 32768,
        },
        mili.ContinuousBatchScheduler.add_request: {"max_tokens": 128},
    }
    for function, wanted in defaults.items():
        shown = inspect.signature(function).parameters
        assert {name: shown[name].default for name in wanted} == wanted


# The page


def rows() -> list[list[str]]:
    """The cells of the page's tables, without their heads."""
    lines = [line for line in PAGE.read_text(encoding="utf8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if row[0] not in ("In the document", "---") and row[0].strip("-")]


def test_the_page_has_a_name_and_a_test_for_everything() -> None:
    assert len(rows()) > 100
    for row in rows():
        assert len(row) == 3, row
        assert all(row), row
        assert "missing" not in row[1].lower(), row
        assert re.search(r"`tests/[\w/]+\.py(::\w+)?`", row[2]), row


def test_the_pages_tests_exist() -> None:
    for row in rows():
        for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row[2]):
            assert (ROOT / file).is_file(), row
            if name:
                assert f"def {name}(" in (ROOT / file).read_text(encoding="utf8"), row


def test_the_pages_names_exist() -> None:
    for row in rows():
        for dotted in re.findall(r"`(mlx_parallm(?:\.\w+)+)", row[1]):
            _named(dotted)
        for path in re.findall(r"`((?:scripts/|mlx_parallm/)[\w./-]+|\w+\.py)`", row[1]):
            assert (ROOT / path).exists(), row


def _named(dotted: str) -> Any:
    """A module, or what an attribute path behind one leads to.

    Raises:
        AttributeError: nothing has that name.
    """
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module and not module.startswith(f"{error.name}."):
                raise  # of its own imports one is missing
            continue
        for name in parts[length:]:
            # A dataclass's field without a default is no attribute of the class.
            fields = getattr(found, "__dataclass_fields__", {})
            found = fields[name] if name in fields else getattr(found, name)
        return found
    raise AttributeError(dotted)


def test_the_page_is_whole() -> None:
    """Each document has a part, and each route of theirs that the server has is on the page."""
    page = PAGE.read_text(encoding="utf8")
    app = create_app(Settings())
    served = {path.split("{")[0] for path in app.openapi()["paths"]}
    for path in re.findall(r"`(?:GET|POST|DELETE) (/[\w/]*)", page):
        assert any(known == path or known.startswith(path) for known in served | {"/docs"}), path
