"""`mlx_parallm_pull` as a process, against a small hub on loopback that has faults."""

from __future__ import annotations

import fcntl
import os
import pty
import random
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Kind

from tests.models import tiny_gguf
from tests.models.tiny_hub import COMMIT, TinyHub
from tests.waiting import PATIENCE_S

WEIGHTS = random.Random(5).randbytes(3_000_000)
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "original.pth": b"not wanted",
}
Result = subprocess.CompletedProcess[str]
Pull = Callable[..., Result]


@pytest.fixture
def hub() -> Iterator[TinyHub]:
    hub = TinyHub(dict(FILES))
    yield hub
    hub.close()


def environment(hub: TinyHub, tmp_path: Path) -> dict[str, str]:
    unset = ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE")
    kept = {key: value for key, value in os.environ.items() if key not in unset}
    return kept | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DOWNLOAD_TIMEOUT": str(int(PATIENCE_S)),
        "NO_PROXY": "127.0.0.1",
    }


COMMAND = [sys.executable, "-m", "mlx_parallm.tools.pull", "a/b"]


@pytest.fixture
def pull(hub: TinyHub, tmp_path: Path) -> Pull:
    def run(*arguments: str, **variables: str) -> Result:
        variables = environment(hub, tmp_path) | variables
        return subprocess.run(
            [*COMMAND, *arguments], env=variables, capture_output=True, text=True, check=False
        )

    return run


def folder_of(result: Result) -> Path:
    assert result.returncode == 0, result.stderr
    return Path(result.stdout.strip())


def error_of(result: Result) -> str:
    assert result.returncode == 1, result.stdout
    assert result.stdout == ""
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("mlx_parallm_pull: error: a/b")
    return last


def test_a_model_comes_once_and_is_there_without_the_hub(hub: TinyHub, pull: Pull) -> None:
    folder = folder_of(pull())
    assert folder.name == COMMIT
    assert {file.name for file in folder.iterdir()} == FILES.keys() - {"original.pth"}
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert folder_of(pull()) == folder
    assert hub.bytes_sent["model.safetensors"] == len(WEIGHTS)
    hub.statuses["/"] = [(503, {})] * 20
    assert folder_of(pull()) == folder
    hub.requests.clear()
    assert folder_of(pull(HF_HUB_OFFLINE="1")) == folder
    assert hub.requests == []


def test_include_and_revision(hub: TinyHub, pull: Pull) -> None:
    folder = folder_of(pull("--include", "*.pth", "--revision", "main"))
    assert [file.name for file in folder.iterdir()] == ["original.pth"]
    assert "no such revision" in error_of(pull("--revision", "v9"))
    assert "no file like *.bin" in error_of(pull("--include", "*.bin"))


def test_cuts_are_resumed(hub: TinyHub, pull: Pull) -> None:
    hub.cuts["model.safetensors"] = [1_000_000, 500_000, 0]
    assert (folder_of(pull()) / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.bytes_sent["model.safetensors"] == len(WEIGHTS)


def test_a_mirror_without_ranges_starts_over(hub: TinyHub, pull: Pull) -> None:
    hub.ranges = False
    hub.cuts["model.safetensors"] = [1_000_000]
    assert (folder_of(pull()) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_stopped_run_is_continued_by_the_next(hub: TinyHub, pull: Pull, tmp_path: Path) -> None:
    hub.slow["model.safetensors"] = 10 * PATIENCE_S
    variables = environment(hub, tmp_path)
    process = subprocess.Popen(COMMAND, env=variables, stderr=subprocess.PIPE, text=True)
    part = len(WEIGHTS) // 2
    blobs = tmp_path / "home/hub/models--a--b/blobs"
    while sum(file.stat().st_size for file in blobs.glob("*.part")) < part // 2:
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hub.slow.clear()
    before = hub.bytes_sent["model.safetensors"]
    assert (folder_of(pull()) / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.bytes_sent["model.safetensors"] - before < len(WEIGHTS)


@pytest.mark.parametrize("fault", ["short", "long", "changed"])
def test_a_file_that_is_not_what_the_hub_says(fault: str, hub: TinyHub, pull: Pull) -> None:
    wrong = {"short": len(WEIGHTS) + 7, "long": len(WEIGHTS) - 7}
    if fault == "changed":
        hub.sent["model.safetensors"] = WEIGHTS[:-1] + b"?"
    else:
        hub.listed["model.safetensors"] = wrong[fault]
    assert "model.safetensors" in error_of(pull())
    hub.listed.clear()
    hub.sent.clear()
    assert (folder_of(pull()) / "model.safetensors").read_bytes() == WEIGHTS


def test_what_to_do_about_401_and_403(hub: TinyHub, pull: Pull) -> None:
    gated = {"X-Error-Code": "GatedRepo"}
    hub.statuses["/api/models"] = [(401, gated)]
    said = error_of(pull())
    assert f"open {hub.url}/a/b" in said
    assert "Agree and access" in said
    assert "HF_TOKEN" in said
    hub.statuses["/a/b/resolve"] = [(403, gated)] * 9
    assert "Agree and access" in error_of(pull(HF_TOKEN="hf_x"))
    hub.statuses = {"/api/models": [(401, {"X-Error-Code": "RepoNotFound"}), (403, {})]}
    assert "no such model, or it is private" in error_of(pull())
    assert "forbids" in error_of(pull())


def test_429_is_waited_out(hub: TinyHub, pull: Pull) -> None:
    hub.statuses["/a/b/resolve"] = [(429, {"Retry-After": "0"}), (503, {})]
    assert (folder_of(pull()) / "model.safetensors").read_bytes() == WEIGHTS
    hub.statuses["/a/b/resolve"] = [(429, {"Retry-After": "0"})] * 20
    assert "slow down" in error_of(pull("--include", "*.pth"))


def test_a_hub_that_reads_slowly_or_is_gone(hub: TinyHub, pull: Pull) -> None:
    hub.slow["config.json"] = 0.4
    assert folder_of(pull()).is_dir()
    assert "cannot be reached" in error_of(
        pull(HF_ENDPOINT="http://127.0.0.1:9", HF_HOME="/nowhere")
    )


def test_the_disk_is_looked_at_first(hub: TinyHub, pull: Pull) -> None:
    hub.listed["model.safetensors"] = 10**17
    said = error_of(pull())
    assert "GB free" in said
    assert "HF_HOME" in said
    assert hub.bytes_sent["model.safetensors"] == 0


def test_a_model_path_comes_in_the_same_way(hub: TinyHub, tmp_path: Path) -> None:
    """Also a GGUF file of a hub's model, by its kind."""
    hub.files.clear()
    for kind in (Kind.Q8_0, Kind.Q4_0):
        file = tiny_gguf.write(tmp_path / "tiny.gguf", "llama", kind)
        hub.files[f"tiny-{kind.name}.gguf"] = file.read_bytes()

    def resolve(path: str) -> Result:
        code = (
            "import sys; from mlx_parallm.models.loader import resolve; print(resolve(sys.argv[1]))"
        )
        variables = environment(hub, tmp_path) | {"MLX_PARALLM_CACHE": str(tmp_path / "cache")}
        return subprocess.run(
            [sys.executable, "-c", code, path],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )

    assert (folder_of(resolve("a/b:q8_0")) / "config.json").is_file()
    assert hub.bytes_sent["tiny-Q4_0.gguf"] == 0
    said = resolve("a/b").stderr
    assert "GGUF files: add one's kind, a/b:Q8_0; there are: tiny-Q8_0.gguf" in said
    assert "no file like" in resolve("a/b:Q6_K").stderr


def test_bars_on_a_terminal(hub: TinyHub, tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    variables = environment(hub, tmp_path)
    with subprocess.Popen(COMMAND, env=variables, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                shown += os.read(main, 65536)
            except OSError:  # Linux says so at the end of a terminal
                break
    os.close(main)
    assert process.returncode == 0
    assert b"model.safetensors: " in shown
    assert b"a/b: 100%" in shown
