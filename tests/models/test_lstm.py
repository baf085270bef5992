"""LSTM language models in the continuous batch, against a loop in numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_parallm.engine.engine import Engine
from mlx_parallm.engine.sequence import SamplingParams, Sequence
from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.loader import load_model
from tests.engine import mock
from tests.engine.driver import Driver, greedy
from tests.models import checkpoints

HIDDEN, LAYERS = 24, 2
PROMPTS = [[3, 4, 5], [9], list(range(3, 40)), list(range(250, 90, -1)), [7] * 12, [200, 8]]


def _config(**own: Any) -> dict[str, Any]:
    config = {
        "model_type": "lstm",
        "vocab_size": mock.VOCAB,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": mock.CONTEXT,
        "eos_token_id": mock.EOS,
    }
    return config | own


def _weights(embedding: int = HIDDEN, tied: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)

    def draw(*shape: int, gain: float = 1.0) -> np.ndarray:
        return (gain * rng.standard_normal(shape)).astype(np.float32)

    found = {"model.embed_tokens.weight": draw(mock.VOCAB, embedding)}
    for layer in range(LAYERS):
        width = HIDDEN if layer else embedding
        name = f"model.layers.{layer}"
        found[f"{name}.Wx"] = draw(4 * HIDDEN, width, gain=1.5 / width**0.5)
        found[f"{name}.Wh"] = draw(4 * HIDDEN, HIDDEN, gain=1.5 / HIDDEN**0.5)
        found[f"{name}.bias"] = draw(4 * HIDDEN, gain=0.3)
    if not tied:
        found["lm_head.weight"] = draw(mock.VOCAB, HIDDEN)
        found["lm_head.bias"] = draw(mock.VOCAB, gain=0.3)
    return found


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


class Oracle:
    """The same model, one token after another, in float64."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.w = {name: array.astype(np.float64) for name, array in weights.items()}
        self.head = self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"])
        self.bias = self.w.get("lm_head.bias", np.zeros(mock.VOCAB))
        self.h = np.zeros((LAYERS, HIDDEN))
        self.c = np.zeros((LAYERS, HIDDEN))

    def step(self, token: int) -> np.ndarray:
        """(V,) log-probabilities of the next token."""
        x = self.w["model.embed_tokens.weight"][token]
        for layer in range(LAYERS):
            name = f"model.layers.{layer}"
            gates = self.w[f"{name}.Wx"] @ x + self.w[f"{name}.Wh"] @ self.h[layer]
            i, f, g, o = np.split(gates + self.w[f"{name}.bias"], 4)
            self.c[layer] = _sigmoid(f) * self.c[layer] + _sigmoid(i) * np.tanh(g)
            x = self.h[layer] = _sigmoid(o) * np.tanh(self.c[layer])
        logits = self.head @ x + self.bias
        return np.asarray(logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max())

    def greedy(self, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
        """The likeliest tokens, and their log-probabilities."""
        for token in prompt[:-1]:
            self.step(token)
        last, tokens, scores = prompt[-1], [], []
        for _ in range(count):
            row = self.step(last)
            last = int(row.argmax())
            tokens.append(last)
            scores.append(float(row[last]))
        return tokens, scores


def _saved(folder: Path, config: dict[str, Any], weights: dict[str, np.ndarray]) -> str:
    arrays = {name: mx.array(array) for name, array in weights.items()}
    return str(checkpoints.write(folder, config, arrays))


@pytest.mark.parametrize(("embedding", "tied"), [(HIDDEN, False), (16, False), (HIDDEN, True)])
def test_the_batch_is_the_loop(
    make_engine: Callable[..., Engine], tmp_path: Path, embedding: int, tied: bool
) -> None:
    """Law 1: ragged prompts, chunks, rows that join late, leave early and fork."""
    weights = _weights(embedding, tied)
    config = _config(embedding_size=embedding, tie_word_embeddings=tied)
    path = _saved(tmp_path, config, weights)
    engine = make_engine(lambda: load_model(path), max_batch_size=8, prefill_chunk=16)
    rows = [
        greedy(prompt, 4 + 5 * place, logprobs=0, ignore_eos=True)
        for place, prompt in enumerate(PROMPTS * 2)
    ]
    driver = Driver(engine)
    for place, row in enumerate(rows[4:], start=1):
        driver.at_step(3 * place, lambda row=row: driver.submit(row))  # type: ignore[misc]
    driver.run(*rows[:4])
    for row in rows:
        tokens, scores = Oracle(weights).greedy(row.prompt, row.params.max_tokens)
        assert driver.tokens(row) == tokens
        assert [e.logprob for e in driver.logprobs(row)] == pytest.approx(scores, abs=1e-4)


def test_every_prompt_token_is_scored(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    weights = _weights()
    path = _saved(tmp_path, _config(), weights)
    engine = make_engine(lambda: load_model(path), prefill_chunk=16)
    rows = [Sequence(prompt, SamplingParams(max_tokens=0, prompt_logprobs=0)) for prompt in PROMPTS]
    driver = Driver(engine).run(*rows)
    for row in rows:
        oracle = Oracle(weights)
        direct = [oracle.step(token) for token in row.prompt]
        own = [float(s[t]) for s, t in zip(direct, row.prompt[1:], strict=False)]
        scores = driver.prompt_logprobs(row) or [None]
        assert scores[0] is None
        assert [e.logprob for e in scores[1:] if e] == pytest.approx(own, abs=1e-4)


def test_torch_names(tmp_path: Path) -> None:
    weights = _weights()
    names = {"Wx": "weight_ih", "Wh": "weight_hh"}
    torch: dict[str, np.ndarray] = {}
    for name, array in weights.items():
        parts = name.split(".")
        if parts[1] != "layers":
            torch[name] = array
        elif parts[3] == "bias":
            torch[f"lstm.bias_ih_l{parts[2]}"] = array - 0.25
            torch[f"lstm.bias_hh_l{parts[2]}"] = np.full_like(array, 0.25)
        else:
            torch[f"lstm.{names[parts[3]]}_l{parts[2]}"] = array
    ours = load_model(_saved(tmp_path / "ours", _config(), weights))
    theirs = load_model(_saved(tmp_path / "torch", _config(), torch))
    ids = mx.array([[5, 6, 7, 8]])
    assert mx.allclose(ours.model(ids), theirs.model(ids), atol=1e-5)
    del torch["lm_head.bias"]
    bare = load_model(_saved(tmp_path / "bare", _config(), torch))
    assert not mx.any(bare.model.lm_head.bias)


def test_tied_needs_equal_widths(tmp_path: Path) -> None:
    config = _config(embedding_size=16, tie_word_embeddings=True)
    with pytest.raises(ModelLoadError, match="embedding_size"):
        load_model(_saved(tmp_path, config, _weights(16, tied=True)))
