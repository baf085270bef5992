"""The command, as a process: it starts, says so, stops on Ctrl-C, and fails in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama

import mlx_parallm
from tests.waiting import PATIENCE_S, wait_until

COMMAND = [sys.executable, "-m", "mlx_parallm.cli"]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, helpers: Any) -> Path:
    """A tiny random Llama in a folder."""
    folder = tmp_path_factory.mktemp("tiny")
    config = {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
        "vocab_size": helpers.VOCAB,
        "max_position_embeddings": 1 << 20,  # a request may run for as long as a test wants
        "eos_token_id": helpers.END,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    model = llama.Model(llama.ModelArgs.from_dict(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    helpers.make_tokenizer()._tokenizer.save_pretrained(folder)
    return folder


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start(*arguments) starts the command; it is killed at the end of the test."""
    processes: list[subprocess.Popen[str]] = []

    def run(*arguments: str, open_files: int | None = None) -> subprocess.Popen[str]:
        # Unbuffered output, and no stray options from the outside.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLX_PARALLM_")}
        pipe = subprocess.PIPE
        # As a shell's `ulimit -n`.
        shell = (
            [] if open_files is None else ["sh", "-c", f'ulimit -n {open_files}; exec "$@"', "-"]
        )
        process = subprocess.Popen(
            [*shell, *COMMAND, *arguments],
            stdout=pipe,
            stderr=pipe,
            text=True,
            env=environment,
            cwd=Path(mlx_parallm.__file__).parents[1],
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def greeting(process: subprocess.Popen[str]) -> str:
    """The line that says where the server is; returns the address."""
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, line + process.communicate()[1]
    return found[0]


def health(url: str) -> dict[str, Any]:
    """What /health says."""
    answer: dict[str, Any] = httpx.get(f"{url}/health", timeout=PATIENCE_S).json()
    return answer


@contextmanager
def running_request(url: str) -> Iterator[None]:
    """Meanwhile a request runs that takes hours."""
    body = {"prompt": "x", "max_tokens": 1_000_000, "ignore_eos": True}

    def ask() -> None:
        # The server ends in the middle.
        with suppress(httpx.HTTPError):
            httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE_S)

    def runs() -> bool:
        metrics = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text
        return re.search(r"num_requests_running\S* 1", metrics) is not None

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(runs)
    yield
    thread.join()


def test_it_serves_and_ctrl_c_ends_it(start: Start, model_folder: Path) -> None:
    process = start("--model-path", str(model_folder), "--port", "0", "--log-level", "warning")
    url = greeting(process)
    assert httpx.get(f"{url}/health", timeout=PATIENCE_S).status_code == 200
    body = {"model": str(model_folder), "prompt": "hello", "max_tokens": 4, "ignore_eos": True}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE_S).json()
    assert answer["usage"]["completion_tokens"] == 4
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert output == ""


def test_ctrl_c_answers_a_running_request_and_a_second_one_quits(
    start: Start, model_folder: Path
) -> None:
    process = start("--model-path", str(model_folder), "--port", "0")
    url = greeting(process)
    with running_request(url):
        # More than one: signals that come close together may be seen as one.
        until = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < until:
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_a_drain_lasts_as_long_as_is_said_and_a_second_sigterm_ends_it(
    start: Start, model_folder: Path
) -> None:
    """The drain is two minutes by default: a supervisor that cannot wait signals twice."""
    process = start("--model-path", str(model_folder), "--port", "0")
    url = greeting(process)
    with running_request(url):
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: health(url)["status"] == "draining")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        # After the drain it would be 0.
        assert process.wait(timeout=PATIENCE_S) == 128 + signal.SIGTERM


def test_it_serves_where_few_files_may_be_open(start: Start, model_folder: Path) -> None:
    """Importing mlx_lm asks for 2,048, which only root gets beyond a limit below that."""
    process = start("--model-path", str(model_folder), "--port", "0", open_files=1024)
    url = greeting(process)
    assert httpx.get(f"{url}/health", timeout=PATIENCE_S).status_code == 200
    limits = Path(f"/proc/{process.pid}/limits")
    if limits.exists():
        (line,) = [x for x in limits.read_text().splitlines() if x.startswith("Max open files")]
        assert line.split()[3:5] == ["1024", "1024"]


def test_a_terminated_server_ends(start: Start, model_folder: Path) -> None:
    process = start("--model-path", str(model_folder), "--port", "0")
    greeting(process)
    process.terminate()
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert "Traceback" not in errors


FAILURES = {
    "--model-path /nowhere/at-all": (1, "/nowhere/at-all"),
    "--model-path {empty}": (1, "empty"),
    "--model-path {broken}": (1, "config.json"),
    "--model-path {model} --chat-template /nowhere/x.jinja": (1, "x.jinja"),
    "--model-path {model} --host 256.0.0.1": (1, "256.0.0.1"),
    "{empty}": (1, "config.json"),
    "{file}": (1, "folder"),
    "{model} --gpu-memory-utilization 1e-9": (1, "--gpu-memory-utilization"),
    "{model} --lora x": (2, "adapters in GGUF are not read"),
    "--port abc": (2, "--port"),
    "--frobnicate": (2, "--frobnicate"),
}
# All of them in one process: most of the time of a start is importing.
_FAIL_IN_TURN = """
import json, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from mlx_parallm.cli import main

found = []
for arguments in json.load(sys.stdin):
    with redirect_stdout(StringIO()) as output, redirect_stderr(StringIO()) as errors:
        code = main(arguments)
    found.append((code, output.getvalue(), errors.getvalue()))
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def failures(
    model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[int, str, str]]:
    """Exit code, output and errors of each of FAILURES."""
    folder = tmp_path_factory.mktemp("failures")
    names = {name: folder / name for name in ("empty", "broken", "file")} | {"model": model_folder}
    names["empty"].mkdir()
    names["broken"].mkdir()
    (names["broken"] / "config.json").write_text("{")
    names["file"].write_text("x")
    given = [failure.format(**names).split() for failure in FAILURES]
    given = [one if "--port" in one else [*one, "--port", "0"] for one in given]
    done = subprocess.run(
        [sys.executable, "-c", _FAIL_IN_TURN],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(FAILURES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("arguments", FAILURES)
def test_failures_are_one_line(failures: dict[str, tuple[int, str, str]], arguments: str) -> None:
    expected, said = FAILURES[arguments]
    code, output, errors = failures[arguments]
    assert code == expected, errors
    lines = [line for line in errors.splitlines() if "error:" in line]
    assert len(lines) == 1, errors
    assert lines[0].startswith("mlx_parallm_serve: error: ")
    assert said in lines[0]
    assert "Traceback" not in errors
    assert output == ""


def test_a_failure_ends_the_process(start: Start) -> None:
    process = start("--model-path", "/nowhere/at-all", "--port", "0")
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, output) == (1, "")
    assert re.fullmatch("mlx_parallm_serve: error: .*\n", errors)


def test_a_port_in_use(start: Start, model_folder: Path) -> None:
    from mlx_parallm.server.listener import listen

    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        process = start("--model-path", str(model_folder), "--port", str(port))
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    (line,) = errors.splitlines()
    found = re.fullmatch(
        rf"mlx_parallm_serve: error: 127\.0\.0\.1:{port} is already in use; try --port (\d+)", line
    )
    assert found, line
    listen("127.0.0.1", int(found[1])).close()


def test_the_log_has_the_facts(start: Start, model_folder: Path) -> None:
    process = start(str(model_folder), "--port", "0", "--kv-cache-memory", "50MB")
    url = greeting(process)
    process.terminate()
    _, errors = process.communicate(timeout=PATIENCE_S)
    facts = {
        label: line for label in FACTS for line in errors.splitlines() if f" {label}: " in line
    }
    assert list(facts) == list(FACTS)
    assert facts["model"].rpartition("mlx_parallm: ")[2].startswith(f"model: {model_folder} (")
    assert "0.05 GB for K and V" in facts["memory"]
    assert facts["API"].endswith(f"{url}/v1")


FACTS = ("model", "device", "BLAS", "memory", "page", "API", "docs")


def test_on_a_terminal_it_greets_with_a_command_to_paste(model_folder: Path) -> None:
    control, terminal = os.openpty()
    process = subprocess.Popen(
        [*COMMAND, str(model_folder), "--port", "0", "--api-key", "secret-1"],
        stdout=terminal,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(mlx_parallm.__file__).parents[1],
    )
    os.close(terminal)
    try:
        shown = ""
        while "What is 34 plus 25?" not in shown:
            shown += os.read(control, 4096).decode()
        shown = shown.replace("\r", "")
        for label in FACTS:
            assert re.search(rf"^  {label} +\S", shown, re.MULTILINE), shown
        curl = shown[shown.index("curl ") :].strip()
        assert "secret-1" not in shown
        curl = curl.replace("YOUR_KEY", "secret-1").replace("What is 34 plus 25?", "hi")
        # A random model goes on for long.
        curl = curl.replace('"messages"', '"max_tokens": 4, "messages"')
        answer = subprocess.run(
            ["sh", "-c", curl], capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert json.loads(answer.stdout)["choices"][0]["message"]["role"] == "assistant"
    finally:
        process.kill()
        process.communicate()
        os.close(control)


@pytest.mark.parametrize("in_file", [True, False])
def test_a_chat_template_of_ones_own(
    start: Start, model_folder: Path, tmp_path: Path, in_file: bool
) -> None:
    template = "own template: {{ messages[0].content }}"
    if in_file:
        (tmp_path / "own.jinja").write_text(template)
        template = str(tmp_path / "own.jinja")
    process = start(
        *("--model-path", str(model_folder), "--port", "0", "--chat-template", template)
    )
    url = greeting(process)
    body = {"messages": [{"role": "user", "content": "hello"}]}
    tokens = httpx.post(f"{url}/tokenize", json=body, timeout=PATIENCE_S).json()["tokens"]
    text = httpx.post(f"{url}/detokenize", json={"tokens": tokens}, timeout=PATIENCE_S).json()[
        "prompt"
    ]
    assert text == "own template: hello"
