"""bench_serving.py: its presets, its options, its figures, and what it says of failures."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import bench_serving
import pytest
from benchlib.load_client import Measured, Run
from benchlib.servers import SpawnError, mlx_lm_command, spawn
from benchlib.serving.comparison import Server, Turns, available
from benchlib.serving.figures import Figures, Result, figures, ratio_rows, server_rows
from benchlib.serving.load import Load, prompts_for
from benchlib.serving.machine import Disturbance
from benchlib.serving.presets import LLAMA, MLX_LM, OURS, PRESETS, quick
from tokenizers import Tokenizer

from tests.scripts.runner import SCRIPTS, run, succeed
from tests.waiting import PATIENCE_S, wait_until

# --- servers ------------------------------------------------------------------------------


def test_a_server_that_does_not_start_is_told_with_its_log() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(SpawnError, match="no such model"), spawn("broken", command):
        pass


def test_mlx_lm_gets_the_same_blas(tiny: Path) -> None:
    assert "blas.preload()" in mlx_lm_command(tiny)[2]


# --- loads --------------------------------------------------------------------------------


def test_prompts_have_their_length_and_are_the_same_for_all_servers(tiny: Path) -> None:
    tokenizer, make = Tokenizer.from_file(str(tiny / "tokenizer.json")), prompts_for(tiny)
    load = Load(prompt=17, output=4, clients=2, requests=8, sampling="mixed")
    ours, theirs = (list(load.bodies(name, make, "seed 1")) for name in ("a", "b"))
    prompts = [body["prompt"] for body in ours]
    assert [body["prompt"] for body in theirs] == prompts
    assert {len(tokenizer.encode(prompt).ids) for prompt in prompts} == {17}
    assert len(set(prompts)) == 8
    later = [body["prompt"] for body in load.bodies("a", make, "seed 2")]
    assert not set(later) & set(prompts)
    assert {body.get("top_p") for body in ours} == {None, 0.95}


def test_a_shared_prefix_and_seeds(tiny: Path) -> None:
    make = prompts_for(tiny)
    load = Load(10, 4, clients=1, requests=3, shared_prefix=0.5, sampling="seeded")
    bodies = list(load.bodies("a", make, "1"))
    assert len({tuple(body["prompt"].split()[:5]) for body in bodies}) == 1
    assert len({tuple(body["prompt"].split()[5:]) for body in bodies}) == 3
    assert [body["seed"] for body in bodies] == [1, 2, 3]


def test_presets_are_named_and_have_a_quick_form() -> None:
    names = [case.name for case in PRESETS["real"].cases]
    assert len(set(names)) == len(names)
    assert {"27m-64-64-32", "smollm2-130-32-8", "27m-512-64-16"} <= set(names)
    assert {"27m-64-64-32-mixed", "27m-64-64-8-seeded"} <= set(names)
    models = {name: {case.model for case in quick(PRESETS[name]).cases} for name in PRESETS}
    assert models == {"real": {"tiny"}, "gpu": {"tiny-bf16", "tiny-4bit"}}


# --- figures ------------------------------------------------------------------------------


def made(throughput: float, first_p95: float, gap_p99: float, **more: float) -> Figures:
    """Figures of a run."""
    run = Run([Measured(1.0, 0.5, [0.1], 7, 5)], 1.0, 0.1)
    found = figures(run, batch_fill=more.get("fill"), server_cpu_s=None, machine=Disturbance())
    return replace(
        found,
        throughput=throughput,
        first={"p50": first_p95 / 2, "p95": first_p95},
        gap={"p99": gap_p99},
    )


def test_figures_of_a_run() -> None:
    good = [Measured(2.0, 0.2, [0.1, 0.3], 7, 4), Measured(4.0, 0.4, [0.2], 9, 6)]
    replies = [*good, Measured(9.0, None, [], 0, 0, "status 500: x")]
    found = figures(
        Run(replies, 5.0, 0.05), batch_fill=0.5, server_cpu_s=8.0, machine=Disturbance()
    )
    assert (found.requests, found.failed, found.errors) == (3, 1, ["status 500: x"])
    assert (found.prompt, found.output, found.throughput) == (8.0, 5.0, 2.0)
    assert found.first == {"p50": 400.0, "p95": 400.0, "p99": 400.0}
    assert found.gap["p99"] == 300.0
    assert (found.client_cpu, found.server_cpu) == (0.01, 1.6)


def test_medians_and_ratios_are_of_rounds() -> None:
    ours = [made(30, 10, 1, fill=0.5), made(10, 30, 2, fill=0.9), made(20, 20, 3, fill=0.8)]
    theirs = [made(10, 10, 2), made(10, 10, 4), made(40, 40, 3)]
    result = Result("a load", {OURS: ours, MLX_LM: theirs}, {MLX_LM: 1.5})
    first, second = server_rows(result)
    assert first["tokens/s"] == "20.0 (10.0..30.0)"
    assert (first["batch fill"], second["batch fill"]) == (0.8, None)
    (row,) = ratio_rows(result)
    # Round by round 3, 1 and 0.5, not the medians' 20 / 10.
    assert row["throughput"] == "1.00 (0.50..3.00)"
    assert row["throughput goal"] == ">= 1.5 missed"
    assert row["first p95"] == "1.00 (0.50..3.00)"
    assert row["first p95 goal"] == "<= 1 met"
    assert (row["gap p99"], row["gap p99 goal"]) == ("0.50 (0.50..1.00)", "<= 0.7 met")


# --- short runs ---------------------------------------------------------------------------


def test_the_real_preset_without_a_hugging_face_cache(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    nowhere = {"HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    loads = ["tiny-16-6-3", "tiny-16-6-3-seeded"]
    printed = succeed(
        "bench_serving.py", "--preset", "real", "--quick", "--only", loads[0], "--only", loads[1],
        "--json", str(out), **nowhere,
    )  # fmt: skip
    report = json.loads(out.read_text())
    assert [result["load"] for result in report["results"]] == loads
    peers = available((MLX_LM, LLAMA))
    for result in report["results"]:
        assert list(result["runs"]) == [OURS, *peers]
        for name, (found,) in result["runs"].items():
            assert (found["requests"], found["failed"], found["prompt"]) == (3, 0, 16)
            assert found["throughput"] > 0
            assert 0 < found["first"]["p50"] <= found["first"]["p95"] <= found["answer"]["p99"]
            assert found["client_cpu"] > 0
            assert (found["batch_fill"] is not None) == (name == OURS)
        (ours,) = result["runs"][OURS]
        assert ours["output"] == 6
        assert 0.3 < ours["batch_fill"] <= 1
    assert "| mlx_lm.server" in printed
    assert "CPUs; load average at the start" in printed


@pytest.mark.parametrize(
    "options",
    [
        ["--rate", "50", "--shared-prefix", "0.5", "--sampling", "mixed"],
        ["--no-stream", "--prompt-format", "ids"],
        ["--endpoint", "chat", "--sampling", "top_p"],
    ],
    ids=["poisson", "whole", "chat"],
)
def test_bench_serving_options(url: str, tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "out.json"
    small = ["--concurrency", "3", "--requests", "6", "--rounds", "2", "--output-tokens", "6"]
    succeed("bench_serving.py", "--url", f"it={url}", *small, *options, "--json", str(out))
    (result,) = json.loads(out.read_text())["results"]
    assert list(result["runs"]) == ["it"]
    assert len(result["runs"]["it"]) == 2
    for found in result["runs"]["it"]:
        assert (found["requests"], found["failed"], found["output"]) == (6, 0, 6)
        assert (found["first"]["p50"] is None) == ("--no-stream" in options)


def test_a_run_that_is_ended_takes_its_servers_with_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    server = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    spawned = f"it={shlex.join([sys.executable, '-c', server])}"
    command = [sys.executable, str(SCRIPTS / "bench_serving.py"), "--spawn", spawned]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: pid.is_file() and pid.read_text() != "")
        process.terminate()
    assert process.returncode == 143
    wait_until(lambda: not is_running(int(pid.read_text())))


def is_running(pid: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_metrics_tell_how_full_the_batch_was(url: str) -> None:
    it = Server("it", url, "tiny")
    before = it._decoding()
    body = json.dumps({"prompt": " babe", "max_tokens": 9, "ignore_eos": True}).encode()
    request = urllib.request.Request(
        f"{url}/v1/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        assert response.status == 200
    after = it._decoding()
    assert before is not None and after is not None
    steps, rows = (new - old for new, old in zip(after, before, strict=True))
    assert 8 <= rows <= 9  # the first token comes with the prompt, the others one a step
    assert rows <= steps <= rows + 3


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        (["--model", "other"], 1, "status 404"),
        (["--preset", "real"], 2, "name servers (--url, --spawn) or a --preset"),
        (["--quick"], 2, "choose from a --preset"),
    ],
)
def test_what_cannot_be_measured_is_told(
    url: str, options: list[str], status: int, told: str
) -> None:
    small = ["--concurrency", "1", "--requests", "1", "--rounds", "1"]
    done = run("bench_serving.py", "--url", url, *small, *options)
    assert done.returncode == status
    assert told in done.stderr


def test_without_its_packages_llama_server_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == "gguf" else None)
    assert available((MLX_LM, LLAMA)) == [MLX_LM]


def test_loads_are_chosen_by_name_or_by_model() -> None:
    args = argparse.Namespace(preset="real", quick=False, only=["27m-64-64-8", "smollm2"])
    found = [case.name for case in bench_serving._chosen(args).cases]
    assert found[:2] == ["27m-64-64-8", "smollm2-130-32-1"]
    assert {name.split("-")[0] for name in found[1:]} == {"smollm2"}


def test_an_unknown_load_is_told_with_those_there_are() -> None:
    done = run("bench_serving.py", "--preset", "real", "--only", "27m-1-1-1")
    assert done.returncode == 1
    assert "no load or model '27m-1-1-1'; there are 27m-64-64-1, " in done.stderr


def test_another_server_takes_the_first_turn_in_each_round() -> None:
    order: list[str] = []

    class Recorder(Server):
        def run(self, *_: object) -> Figures:
            order.append(self.name)
            return made(1, 1, 1)

    servers = [Recorder(name, "", "") for name in "abc"]
    load = Load(1, 1, clients=1, requests=1)
    Turns(3, say=lambda _: None).alternate("x", load, servers, lambda count, rng: "")
    assert "".join(order) == "abcabcbcacab"  # the first three warm up
