"""/v1/predict: plain networks against formulas in NumPy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.predictor import Predictor, load_predictors
from mlx_parallm.options.loading import load_settings
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings
from tests.waiting import wait_until

MLP: dict[str, Any] = {
    "kind": "mlp",
    "name": "iris",
    "input_size": 4,
    "hidden_sizes": [8, 6],
    "output_size": 3,
    "activation": "tanh",
    "output": "softmax",
    "labels": ["a", "b", "c"],
}
LSTM: dict[str, Any] = {
    "kind": "lstm",
    "input_size": 2,
    "hidden_size": 5,
    "num_layers": 2,
    "output_size": 1,
}
Weights = dict[str, np.ndarray]


def _draw(shapes: dict[str, tuple[int, ...]]) -> Weights:
    rng = np.random.default_rng(2)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def mlp_weights() -> Weights:
    """Of MLP."""
    widths = [4, 8, 6, 3]
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(3):
        shapes[f"layers.{layer}.weight"] = (widths[layer + 1], widths[layer])
        shapes[f"layers.{layer}.bias"] = (widths[layer + 1],)
    return _draw(shapes)


def lstm_weights() -> Weights:
    """Of LSTM."""
    shapes: dict[str, tuple[int, ...]] = {"head.weight": (1, 5), "head.bias": (1,)}
    for layer, into in enumerate((2, 5)):
        shapes[f"layers.{layer}.Wx"] = (20, into)
        shapes[f"layers.{layer}.Wh"] = (20, 5)
        shapes[f"layers.{layer}.bias"] = (20,)
    return _draw(shapes)


def mlp(w: Weights, x: list[float]) -> np.ndarray:
    """One row, in float64."""
    y = np.array(x)
    for layer in range(3):
        y = w[f"layers.{layer}.weight"].astype(np.float64) @ y + w[f"layers.{layer}.bias"]
        y = np.tanh(y) if layer < 2 else np.exp(y) / np.exp(y).sum()
    return y


def lstm(w: Weights, steps: list[list[float]]) -> np.ndarray:
    """One row, step by step, in float64."""
    h, c = np.zeros((2, 5)), np.zeros((2, 5))
    for step in steps:
        x = np.array(step)
        for layer in range(2):
            at = f"layers.{layer}"
            gates = w[f"{at}.Wx"].astype(np.float64) @ x + w[f"{at}.Wh"] @ h[layer]
            i, f, g, o = np.split(gates + w[f"{at}.bias"], 4)
            i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
            c[layer] = f * c[layer] + i * np.tanh(g)
            x = h[layer] = o * np.tanh(c[layer])
    return np.asarray(w["head.weight"] @ h[1] + w["head.bias"])


def write(folder: Path, signature: dict[str, Any], weights: Weights) -> str:
    """A network's folder."""
    folder.mkdir(exist_ok=True)
    (folder / "signature.json").write_text(json.dumps(signature))
    arrays = {name: mx.array(array) for name, array in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)
    return str(folder)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The bundled model with two networks beside it."""
    folder = tmp_path_factory.mktemp("networks")
    folders = (
        write(folder / "one", MLP, mlp_weights()),
        write(folder / "sine", LSTM, lstm_weights()),
    )
    with TestClient(create_app(Settings(predictor=folders))) as found:
        wait_until(lambda: found.get("/health").status_code == 200)
        yield found


def outputs(client: TestClient, **body: Any) -> np.ndarray:
    """(B, output_size) of a request."""
    answer = client.post("/v1/predict", json=body)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [entry["index"] for entry in data] == list(range(len(data)))
    return np.array([entry["outputs"] for entry in data])


def test_mlp(client: TestClient) -> None:
    rows = np.random.default_rng(0).standard_normal((7, 4)).tolist()
    right = np.array([mlp(mlp_weights(), row) for row in rows])
    np.testing.assert_allclose(outputs(client, model="iris", inputs=rows), right, atol=1e-5)
    answer = client.post("/v1/predict", json={"model": "iris", "inputs": rows}).json()
    assert [e["label"] for e in answer["data"]] == ["abc"[i] for i in right.argmax(axis=1)]
    assert outputs(client, model="iris", inputs=[[1, 2, 3, 4]]).shape == (1, 3)


def test_lstm_rows_of_any_length(client: TestClient) -> None:
    rng = np.random.default_rng(1)
    rows = [rng.standard_normal((length, 2)).tolist() for length in (1, 30, 4, 9)]
    right = [lstm(lstm_weights(), row) for row in rows]
    np.testing.assert_allclose(outputs(client, model="sine", inputs=rows), right, atol=1e-5)


def test_together_is_alone_beside_generation(client: TestClient) -> None:
    rng = np.random.default_rng(3)

    def one(place: int) -> np.ndarray | str:
        if place % 4 == 0:
            body = {"prompt": f"3 + {place} =", "max_tokens": 12, "temperature": 0}
            text: str = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
            return text
        if place % 2:
            return outputs(client, model="iris", inputs=inputs[place][:, :4].tolist())
        return outputs(client, model="sine", inputs=[inputs[place][:, :2].tolist()])

    inputs = [rng.standard_normal((1 + place % 5, 4)) for place in range(24)]
    alone = [one(place) for place in range(24)]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(one, range(24)))
    for mine, other in zip(alone, together, strict=True):
        if isinstance(mine, str):
            assert mine == other
        else:
            np.testing.assert_allclose(np.asarray(other, float), mine, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "other", "inputs": [[1]]}, 404, "model"),
        ({"inputs": [[1]]}, 404, "model"),
        ({"model": "iris", "inputs": []}, 400, None),
        ({"model": "iris", "inputs": [[1, 2, 3]]}, 400, "inputs[0]"),
        ({"model": "iris", "inputs": [[[1, 2, 3, 4]]]}, 400, "inputs[0]"),
        ({"model": "iris", "inputs": [[1, 2, 3, "4"]]}, 400, None),
        ({"model": "sine", "inputs": [[1, 2]]}, 400, "inputs[0]"),
        ({"model": "sine", "inputs": [[[1, 2]], [[1]]]}, 400, "inputs[1]"),
        ({"model": "sine", "inputs": [[[1, 2]] * 513]}, 400, None),
        ({"model": "iris", "inputs": [[1e39, 0, 0, 0]]}, 400, None),
        ({"model": "iris"}, 400, "inputs"),
    ],
)
def test_wrong_input(
    client: TestClient, body: dict[str, Any], status: int, param: str | None
) -> None:
    response = client.post("/v1/predict", json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({"kind": "cnn"}, "kind must be one of"),
        ({"input_size": 0}, "input_size"),
        ({"input_size": 5}, "must be \\(8, 5\\)"),
        ({"hidden_sizes": [8]}, "layers.1.weight"),
        ({"labels": ["a"]}, "labels"),
        ({"activation": "mish"}, "activation"),
        ({"output": "max"}, "output"),
    ],
)
def test_wrong_signatures(tmp_path: Path, own: dict[str, Any], reason: str) -> None:
    folder = write(tmp_path / "net", MLP | own, mlp_weights())
    with pytest.raises(ModelLoadError, match=reason):
        Predictor(Path(folder))


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"signature\.json"):
        load_predictors([str(tmp_path)])
    folder = write(tmp_path / "net", MLP, mlp_weights() | {"extra": np.zeros(1, np.float32)})
    with pytest.raises(ModelLoadError, match="extra"):
        load_predictors([folder])
    folder = write(tmp_path / "net", MLP, mlp_weights())
    with pytest.raises(ModelLoadError, match="already"):
        load_predictors([folder, folder])
    assert load_settings(["--predictor", "a", "--predictor", "b"], {}).predictor == ("a", "b")
    (tmp_path / "net" / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"model\.safetensors"):
        load_predictors([folder])
