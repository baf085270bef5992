"""What is wrong with an adapter is said in one sentence, and nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_parallm.errors import InvalidRequestError, NotFoundError, ParallmError, UnsupportedError
from mlx_parallm.models.lora.modules import Modules
from mlx_parallm.models.lora.reader import read_bytes, read_folder
from tests.models.lora.adapters import ALL, mlx_lm_adapter

pytestmark = pytest.mark.usefixtures("no_compile")

Change = Callable[[dict[str, Any], dict[str, mx.array]], None]
Q = "model.layers.0.self_attn.q_proj"


def _rename(config: dict[str, Any], weights: dict[str, mx.array]) -> None:
    weights["model.layers.9.self_attn.q_proj.lora_a"] = weights.pop(f"{Q}.lora_a")


def _nan(config: dict[str, Any], weights: dict[str, mx.array]) -> None:
    weights[f"{Q}.lora_b"] = mx.full(weights[f"{Q}.lora_b"].shape, mx.nan)


def _without_half(config: dict[str, Any], weights: dict[str, mx.array]) -> None:
    del weights[f"{Q}.lora_b"]


def _without_scale(config: dict[str, Any], weights: dict[str, mx.array]) -> None:
    del config["lora_parameters"]["scale"]


def _other_kind(config: dict[str, Any], weights: dict[str, mx.array]) -> None:
    config.clear()
    config["peft_type"] = "IA3"


def _set(name: str, array: mx.array) -> Change:
    return lambda _, weights: weights.update({f"{Q}.{name}": array})


BAD = InvalidRequestError
CASES: dict[str, tuple[Change, type[ParallmError], str]] = {
    "unknown module": (_rename, BAD, "has no such module"),
    "not finite": (_nan, BAD, "not finite"),
    "shape": (_set("lora_a", mx.zeros((31, 4))), BAD, r"A has the shape \(31, 4\)"),
    "half missing": (_without_half, BAD, "missing"),
    "type": (_set("lora_a", mx.zeros((32, 4), mx.int32)), BAD, "its type is I32"),
    "empty": (lambda _, weights: weights.clear(), BAD, "changes nothing"),
    "no scale": (_without_scale, BAD, "no scale"),
    "neither format": (lambda config, _: config.clear(), BAD, "neither PEFT's nor"),
    "other kind": (_other_kind, UnsupportedError, "IA3"),
    "parameter": (_set("extra", mx.zeros(2)), BAD, "no parameter 'extra'"),
}


@pytest.fixture
def adapter(llama_factory: Any, tmp_path: Path) -> Path:
    return mlx_lm_adapter(tmp_path / "good", llama_factory().model, 0, keys=list(ALL))


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_said(llama_factory: Any, adapter: Path, case: str) -> None:
    change, kind, message = CASES[case]
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights: dict[str, Any] = mx.load(str(adapter / "adapters.safetensors"))  # type: ignore[assignment]
    change(config, weights)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(adapter / "adapters.safetensors"), weights)
    with pytest.raises(kind, match=message):
        read_folder(adapter, Modules(llama_factory().model), 16)


def test_rank_and_missing_files(llama_factory: Any, adapter: Path, tmp_path: Path) -> None:
    modules = Modules(llama_factory().model)
    with pytest.raises(InvalidRequestError, match="rank is 4; --max-lora-rank is 2"):
        read_folder(adapter, modules, 2)
    with pytest.raises(NotFoundError, match=r"no adapter_config\.json"):
        read_folder(tmp_path, modules, 16)
    (adapter / "adapters.safetensors").unlink()
    with pytest.raises(NotFoundError, match="neither"):
        read_folder(adapter, modules, 16)


def test_every_truncation_is_noticed(llama_factory: Any, adapter: Path) -> None:
    modules = Modules(llama_factory().model)
    config = json.loads((adapter / "adapter_config.json").read_text())
    data = (adapter / "adapters.safetensors").read_bytes()
    cuts = [0, 4, 8, 100, *np.linspace(200, len(data) - 1, 20).astype(int).tolist()]
    for size in cuts:
        with pytest.raises(InvalidRequestError):
            read_bytes(config, data[:size], modules, 16)
    assert read_bytes(config, data, modules, 16).rank == 4
