"""The loads that the README's figures come from, with what we want to reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchlib.serving.load import Load

OURS, MLX_LM, LLAMA = "mlx_parallm", "mlx_lm.server", "llama-server"
GOAL_FIRST_P95, GOAL_GAP_P99 = 1.0, 0.7  # ours over mlx_lm.server's, at any load


@dataclass(frozen=True)
class Case:
    """A load on a model.

    Attributes:
        model: a name that `bench_models.folder_of` knows.
        goals: peer -> our throughput over the peer's that we want to reach; None where the
            goals for times do not hold either.
    """

    model: str
    load: Load
    goals: Mapping[str, float] | None = None

    @property
    def name(self) -> str:
        """MODEL-PROMPT-OUTPUT-CLIENTS, and the sampling where it is not greedy."""
        load = self.load
        parts = [self.model, load.prompt, load.output, load.clients]
        greedy = load.sampling == "greedy"
        return "-".join(map(str, parts if greedy else [*parts, load.sampling]))


@dataclass(frozen=True)
class Preset:
    """Cases that one command measures.

    Attributes:
        peers: the servers beside ours.
        together: all servers run all the time and take turns within each load. Otherwise one
            runs at a time, since several do not fit into memory, and they take turns in it.
    """

    cases: Sequence[Case]
    peers: Sequence[str]
    together: bool = True


def _goals(mlx_lm: float, llama: float | None = None) -> dict[str, float]:
    return {MLX_LM: mlx_lm} | ({LLAMA: llama} if llama else {})


_REAL = [
    Case("27m", Load(64, 64, clients=1, requests=3), _goals(1.3, 0.5)),
    Case("27m", Load(64, 64, clients=8, requests=16), _goals(1.5, 0.9)),
    Case("27m", Load(64, 64, clients=32, requests=64), _goals(2.0, 1.1)),
    Case("27m", Load(64, 64, clients=32, requests=64, sampling="mixed"), {}),
    # A seed for each request is what mlx_lm.server does not batch.
    Case("27m", Load(64, 64, clients=8, requests=8, sampling="seeded"), {}),
    Case("27m", Load(512, 64, clients=16, requests=32), _goals(1.5, 0.9)),
    Case("smollm2", Load(130, 32, clients=1, requests=2), _goals(1.4, 0.6)),
    Case("smollm2", Load(130, 32, clients=8, requests=16), _goals(1.5, 0.9)),
    Case("smollm2", Load(130, 32, clients=8, requests=16, sampling="mixed"), {}),
    Case("smollm2", Load(8, 64, clients=8, requests=16), _goals(1.6)),
]
_GPU_MODELS = ("1b-bf16", "1b-4bit", "8b-bf16", "8b-4bit")
_GPU = [
    Case(model, Load(prompt, 128, clients=clients, requests=requests))
    for model in _GPU_MODELS
    for prompt in (128, 2048)
    for clients, requests in ((1, 2), (8, 16), (32, 64), (128, 256))
]
PRESETS = {
    "real": Preset(_REAL, (MLX_LM, LLAMA)),
    "gpu": Preset(_GPU, (MLX_LM,), together=False),
}


def quick(preset: Preset) -> Preset:
    """One tiny load for each kind of model, sampling and number of clients, to see that it runs."""
    tiny = {"1b-bf16": "tiny-bf16", "1b-4bit": "tiny-4bit", "27m": "tiny"}
    kept = {
        (tiny[case.model], case.load.clients > 1, case.load.sampling): case
        for case in preset.cases
        if case.model in tiny
    }
    cases = [
        replace(case, model=model, goals=None, load=_small(case.load, 3 if many else 1))
        for (model, many, _), case in kept.items()
    ]
    return replace(preset, cases=cases)


def _small(load: Load, clients: int) -> Load:
    return replace(load, prompt=16, output=6, clients=clients, requests=clients)
