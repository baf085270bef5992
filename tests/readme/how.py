"""How the commands of the pages are run by a test: most as they are, long ones in a short form.

A command that nothing here fits fails the test, so that nobody forgets a new one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class How:
    """A way to run the commands that begin so.

    Attributes:
        begins: a regular expression.
        more: arguments that make it short; put at the command's end, where the last one counts.
        serves: it runs until it is stopped.
        silent: it prints nothing.
        typed: what somebody types into it.
        shown_by: the test that runs its short form already; here only its flags are looked up.
        elsewhere: it needs what the tests' environment has not, so that not even they are.
    """

    begins: str
    more: str = ""
    serves: bool = False
    silent: bool = False
    typed: str = ""
    shown_by: str = ""
    elsewhere: bool = False


WAYS = (
    # Of ours: the server, and what goes with it.
    How(r"mlx_parallm_serve --help"),
    How(r"mlx_parallm_serve --list-local"),
    How(r"mlx_parallm serve --help"),
    How(r"\./scripts/serve\b", serves=True),
    How(r"scripts/start-advanced-server\.sh", serves=True),
    How(r"mlx_parallm_serve( |$)", serves=True),
    How(r"mlx_parallm serve ", serves=True),
    How(r"\./scripts/test\b", more="--version"),  # whoever runs this test runs it
    How(r"mlx_parallm chat ", typed="What is 3 plus 4?\n"),
    How(r"mlx_parallm pull "),
    How(r"mlx_parallm check .*--quick"),
    How(r"mlx_parallm bench ", more="--concurrency 1 2 --requests 2 --words 8 --tokens 4"),
    How(r"(?s)mlx_parallm train .*--resume", more="--steps 3 --prompts-per-step 2"),
    How(r"mlx_parallm train ", more="--steps 2 --prompts-per-step 2"),
    How(r"mlx_parallm (convert-adapter|merge-lora) "),
    How(r"mlx_parallm version"),
    How(r"python -m mlx_parallm\.memory ", silent=True),
    # Other people's.
    How(r"source "),
    How(r"pip install ", more="--no-deps"),
    How(r"curl -s http://127\.0\.0\.1:\d+/workers", shown_by="tests/tools/test_serve_many.py"),
    How(r"(sudo )?(install|cp|systemctl|launchctl) ", shown_by="tests/tools/test_deploy.py"),
    How(
        r"ray start|(RAY_ADDRESS=\w+ )?python -m mlx_parallm\.ray_app|serve run ",
        shown_by="tests/on_ray/test_ray_app.py",
        elsewhere=True,
    ),
    How(r"curl -s "),
    How(r"until curl -s ", silent=True),
    How(r"lm_eval ", more="--limit 2"),
    # Scripts.
    How(r"scripts/(logprobs|perplexity|test_advanced_client)\.py "),
    How(
        r"scripts/bench_engine\.py --scenario \w+ --rounds \d+",
        shown_by="tests/scripts/test_bench_engine.py",
    ),
    How(r"scripts/bench_serving\.py --preset", shown_by="tests/scripts/test_bench_serving.py"),
    How(r"scripts/bench_cpu_ops\.py", shown_by="tests/scripts/test_bench_cpu_ops.py"),
    How(r"scripts/bench_contention\.py", shown_by="tests/test_script_starts.py"),
    How(r"scripts/bench_training\.py", shown_by="tests/test_script_starts.py"),
    How(r"scripts/bench_memory\.py", more="--rows 1 --sizes 0 64 --steps 8"),
    How(r"scripts/bench_structured\.py", more="--model tiny --rows 2 --tokens 4 --rounds 1"),
    How(r"scripts/eval_bundled\.py --count \d+", more="--count 1 --url URL --draft-url URL"),
    How(r"scripts/(eval_vision|bench_(vision|sounds))\.py", shown_by="tests/test_script_starts.py"),
    How(r"scripts/eval_extended_mind\.py", shown_by="tests/test_eval_extended_mind.py"),
    How(r"scripts/bench_distributed\.py", more="--tokens 2 --rows 1 --added-us 0"),
    How(
        r"(mlx\.launch|python -m tests\.engine\.ranks\.every_type)\b",
        elsewhere=True,
        shown_by="tests/engine/ranks/test_serving.py",
    ),
    How(r"(scripts/serve_many|mlx_parallm serve-many) ", shown_by="tests/tools/test_serve_many.py"),
    How(r"scripts/bench_replicas\.py", shown_by="tests/scripts/test_bench_replicas.py"),
    How(r"scripts/simulate_fleet\.py", shown_by="tests/scripts/test_simulate_fleet.py"),
    How(r"scripts/train_with_trl\.py", shown_by="tests/scripts/test_trainers.py"),
    How(r"scripts/logprob_mismatch\.py", shown_by="tests/scripts/test_trainers.py"),
    How(r"scripts/soak\.py", shown_by="tests/scripts/test_soak.py"),
)


def way_of(command: str) -> How:
    """How to run a command.

    Raises:
        LookupError: nobody has said how.
    """
    for way in WAYS:
        if re.match(way.begins, command):
            return way
    raise LookupError(f"tests/readme/how.py does not say how to run: {command}")
