"""What a run of requests says: figures of one run, and medians over rounds as table rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchlib.load_client import Run
from benchlib.serving.machine import Disturbance
from benchlib.serving.presets import GOAL_FIRST_P95, GOAL_GAP_P99, MLX_LM
from benchlib.table import percentile


@dataclass(frozen=True)
class Figures:
    """One run of one server. Times in milliseconds; None where they cannot be known.

    Attributes:
        prompt, output: mean tokens of a request.
        throughput: output tokens a second.
        first: percentile -> time to the first text.
        gap: percentile -> time between one text and the next.
        answer: percentile -> time to the end of the answer.
        batch_fill: mean decoding rows of a step over the clients.
        client_cpu, server_cpu: CPUs that they kept busy.
        errors: of the requests that failed, each once.
    """

    requests: int
    failed: int
    prompt: float
    output: float
    throughput: float
    first: Mapping[str, float | None]
    gap: Mapping[str, float | None]
    answer: Mapping[str, float | None]
    batch_fill: float | None
    client_cpu: float
    server_cpu: float | None
    machine: Disturbance
    errors: Sequence[str]


def figures(
    run: Run, *, batch_fill: float | None, server_cpu_s: float | None, machine: Disturbance
) -> Figures:
    """A run's figures; `server_cpu_s` are the CPU seconds that the server used."""
    good = [reply for reply in run.replies if not reply.error]
    tokens = [reply.output_tokens for reply in good]
    return Figures(
        requests=len(run.replies),
        failed=len(run.replies) - len(good),
        prompt=_mean([reply.prompt_tokens for reply in good]),
        output=_mean(tokens),
        throughput=round(sum(tokens) / run.seconds, 1),
        first=_times([r.first_token for r in good if r.first_token is not None]),
        gap=_times([gap for reply in good for gap in reply.gaps]),
        answer=_times([reply.latency for reply in good]),
        batch_fill=batch_fill,
        client_cpu=round(run.client_cpu / run.seconds, 3),
        server_cpu=None if server_cpu_s is None else round(server_cpu_s / run.seconds, 2),
        machine=machine,
        errors=sorted({reply.error for reply in run.replies if reply.error}),
    )


def _mean(values: list[int]) -> float:
    return round(statistics.fmean(values), 1) if values else 0.0


def _times(seconds: list[float]) -> dict[str, float | None]:
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    found = {label: percentile(seconds, share) for label, share in shares.items()}
    return {k: None if v is None else round(1000 * v, 1) for k, v in found.items()}


# --- over rounds --------------------------------------------------------------------------


@dataclass
class Result:
    """All rounds of one load: server -> its runs, the first server being ours."""

    load: str
    runs: dict[str, list[Figures]]
    goals: Mapping[str, float] | None = None

    def as_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        runs = {server: [asdict(run) for run in runs] for server, runs in self.runs.items()}
        return {"load": self.load, "runs": runs, "ratios": list(ratio_rows(self))}


Value = Callable[[Figures], float | None]
_VALUES: dict[str, Value] = {
    "throughput": lambda run: run.throughput,
    "first p50": lambda run: run.first["p50"],
    "first p95": lambda run: run.first["p95"],
    "gap p99": lambda run: run.gap["p99"],
    "batch fill": lambda run: run.batch_fill,
}


def server_rows(result: Result) -> Iterator[dict[str, Any]]:
    """A row of medians for each server; brackets hold the smallest and the largest round."""
    for server, runs in result.runs.items():
        found = {name: [value(run) for run in runs] for name, value in _VALUES.items()}
        yield {
            "load": result.load,
            "server": server,
            "in/out": f"{runs[0].prompt:g}/{runs[0].output:g}",
            "tokens/s": _spread(found["throughput"], 1),
            "first p50 ms": _spread(found["first p50"], 0),
            "first p95 ms": _spread(found["first p95"], 0),
            "gap p99 ms": _spread(found["gap p99"], 0),
            "batch fill": _median(found["batch fill"]),
            "failed": sum(run.failed for run in runs),
        }


def ratio_rows(result: Result) -> Iterator[dict[str, Any]]:
    """Ours over each other server: the median of the rounds' ratios, and their spread.

    Above 1 is good for the throughput, below 1 for the times.
    """
    ours, *others = result.runs
    for other in others:
        pairs = list(zip(result.runs[ours], result.runs[other], strict=True))
        found = {name: _over(pairs, value) for name, value in _VALUES.items()}
        goals = _goals(result, other)
        row: dict[str, Any] = {"load": result.load, "ours over": other}
        for name in ("throughput", "first p50", "first p95", "gap p99"):
            row[name] = _spread(found[name], 2)
            if name in ("throughput", "first p95", "gap p99"):
                above = name == "throughput"
                row[f"{name} goal"] = _judged(_median(found[name]), goals.get(name), above=above)
        yield row


def _goals(result: Result, other: str) -> dict[str, float | None]:
    if result.goals is None:
        return {}
    goals: dict[str, float | None] = {"throughput": result.goals.get(other)}
    if other == MLX_LM:
        goals |= {"first p95": GOAL_FIRST_P95, "gap p99": GOAL_GAP_P99}
    return goals


def _over(pairs: list[tuple[Figures, Figures]], value: Value) -> list[float | None]:
    """One over the other, round by round."""
    found = [(value(one), value(other)) for one, other in pairs]
    return [a / b if a is not None and b else None for a, b in found]


def _judged(value: float | None, goal: float | None, *, above: bool) -> str | None:
    if goal is None or value is None:
        return None
    met = value >= goal if above else value <= goal
    return f"{'>=' if above else '<='} {goal:g} {'met' if met else 'missed'}"


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 2) if known else None


def _spread(values: list[float | None], digits: int) -> str | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    middle = f"{statistics.median(known):.{digits}f}"
    return f"{middle} ({min(known):.{digits}f}..{max(known):.{digits}f})"
