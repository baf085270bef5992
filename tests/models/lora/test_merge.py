"""Merged weights give what the model with its adapter gives; mlx-lm's layers are the oracle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_unflatten
from mlx_lm.utils import save_config, save_model

from mlx_parallm.models.loader import load_as_stored
from mlx_parallm.models.lora.modules import Modules
from mlx_parallm.models.lora.reader import read_folder
from mlx_parallm.tools import convert_adapter, merge_lora
from tests.models.lora.adapters import ALL, mlx_lm_adapter, with_mlx_lm
from tests.models.lora.forwards import apart, mixed, slots_of, some_tokens

pytestmark = pytest.mark.usefixtures("no_compile")

TIED = ("self_attn.q_proj", "model.embed_tokens")
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...], str, bool]] = {
    "lora": ({}, ALL, "lora", False),
    "dora": ({"attention_bias": True}, ALL, "dora", False),
    "head": ({}, ("lm_head", "self_attn.v_proj"), "lora", False),
    "tied embedding": ({"tie_word_embeddings": True}, TIED, "lora", False),
    "tied embedding, dora": ({"tie_word_embeddings": True}, TIED, "dora", False),
    "lora, packed": ({}, ALL[:3], "lora", True),
    "dora, packed": ({}, ALL, "dora", True),
}
BESIDES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
Make = Callable[[], Any]


def _packable(path: str, module: Any) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0


@pytest.fixture
def saved(llama_factory: Any, tmp_path: Path) -> Callable[..., Path]:
    """A tiny Llama in a folder, as mlx-lm writes it."""

    def save(config: dict[str, Any], packed: bool) -> Path:
        loaded, folder = llama_factory(**config), tmp_path / "base"
        written = dict(loaded.config)
        if packed:
            nn.quantize(loaded.model, 32, 4, class_predicate=_packable)
            written["quantization"] = {"group_size": 32, "bits": 4, "mode": "affine"}
        save_model(folder, loaded.model)
        save_config(written, folder / "config.json")
        for name in BESIDES:
            (folder / name).write_text("{}")
        return folder

    return save


def _model(folder: Path) -> Any:
    return load_as_stored(str(folder))[0]


@pytest.mark.parametrize("case", CASES)
def test_merged_equals_unfused(saved: Any, tmp_path: Path, case: str) -> None:
    config, keys, kind, packed = CASES[case]
    base, adapter = saved(config, packed), tmp_path / "adapter"
    mlx_lm_adapter(adapter, _model(base), 1, keys=list(keys), kind=kind)
    output = tmp_path / "merged"
    arguments = ["--model-path", str(base), "--adapter", str(adapter), "--output", str(output)]
    assert merge_lora.main(arguments) == 0
    tokens = some_tokens(3, 12)
    merged = _model(output)(mx.array(tokens))
    assert apart(merged, with_mlx_lm(_model(base), adapter)(mx.array(tokens))) < 1e-4
    model = _model(base)
    assert apart(merged, mixed(model, slots_of(model, [adapter]), tokens, [1] * 3)) < 1e-4
    assert apart(merged, _model(base)(mx.array(tokens))) > 0.1
    assert all((output / name).read_text() == "{}" for name in BESIDES)
    if packed:
        kinds = {type(module) for module in _model(output).modules()}
        assert (nn.QuantizedEmbedding in kinds) and (nn.Linear in kinds)
        assert merge_lora.main([*arguments, "--pack"]) == 0
        again = _model(output)(mx.array(tokens))
        assert apart(again, _fused(with_mlx_lm(_model(base), adapter))(mx.array(tokens))) < 1e-3
        assert apart(again, merged) > 1e-3  # rounded


def _fused(model: Any) -> Any:
    """mlx-lm's own merge, which packs again."""
    fused = [(path, m.fuse()) for path, m in model.named_modules() if hasattr(m, "fuse")]
    model.update_modules(tree_unflatten(fused))
    return model


def test_what_cannot_be_merged_is_said(
    saved: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = saved({"tie_word_embeddings": True}, False), tmp_path / "adapter"
    mlx_lm_adapter(adapter, _model(base), 1, keys=list(ALL))
    weights: dict[str, Any] = mx.load(str(adapter / "adapters.safetensors"))  # type: ignore[assignment]
    config = {"peft_type": "LORA", "lora_alpha": 4, "r": 4}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "adapters.safetensors").unlink()
    head = {"lm_head.lora_A.weight": mx.ones((4, 32)), "lm_head.lora_B.weight": mx.ones((259, 4))}
    mx.save_safetensors(str(adapter / "adapter_model.safetensors"), head)
    arguments = ["--model-path", str(base), "--adapter", str(adapter)]
    assert weights and merge_lora.main([*arguments, "--output", str(tmp_path / "m")]) == 1
    assert "are one weight" in capsys.readouterr().err
    assert merge_lora.main([*arguments, "--output", str(base)]) == 1
    assert "own folder" in capsys.readouterr().err
    assert convert_adapter.main([str(adapter), str(tmp_path / "c"), *arguments[:2]]) == 1
    assert "mlx-lm can change both only" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_there_and_back(saved: Any, tmp_path: Path, kind: str) -> None:
    """mlx-lm's adapter as PEFT's and as mlx-lm's again changes the model as before."""
    base, first = saved({}, False), tmp_path / "1"
    mlx_lm_adapter(first, _model(base), 1, keys=[*ALL, "lm_head"], kind=kind, scale=3.0)
    second, third = tmp_path / "2", tmp_path / "3"
    assert convert_adapter.main([str(first), str(second), "--model-path", str(base)]) == 0
    assert (second / "adapter_model.safetensors").is_file()
    assert convert_adapter.main([str(second), str(third)]) == 0  # the config names the base
    tokens = mx.array(some_tokens(3, 12))
    wanted = with_mlx_lm(_model(base), first)(tokens)
    assert apart(with_mlx_lm(_model(base), third)(tokens), wanted) < 1e-4
    model = _model(base)
    assert apart(mixed(model, slots_of(model, [second]), np.array(tokens), [1] * 3), wanted) < 1e-4


def test_ranks_and_layers_may_differ(saved: Any, tmp_path: Path) -> None:
    """PEFT's patterns: mlx-lm has one rank and whole layers, filled up with zeros."""
    base, adapter, output = saved({}, False), tmp_path / "1", tmp_path / "2"
    rng = np.random.default_rng(0)
    tensors = {}
    for path, rank, out in (("layers.1.self_attn.q_proj", 2, 32), ("layers.1.mlp.up_proj", 4, 48)):
        name = f"base_model.model.model.{path}"
        tensors[f"{name}.lora_A.weight"] = mx.array(rng.normal(size=(rank, 32)))
        tensors[f"{name}.lora_B.weight"] = mx.array(rng.normal(size=(out, rank)))
    adapter.mkdir()
    mx.save_safetensors(str(adapter / "adapter_model.safetensors"), tensors)
    config = {"peft_type": "LORA", "lora_alpha": 4, "r": 4, "use_rslora": True}
    config["alpha_pattern"] = {"q_proj": 1}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    arguments = [str(adapter), str(output), "--model-path", str(base)]
    assert convert_adapter.main(arguments) == 0
    written = json.loads((output / "adapter_config.json").read_text())
    assert written["num_layers"] == 1
    assert written["lora_parameters"]["keys"] == ["mlp.up_proj", "self_attn.q_proj"]
    tokens = some_tokens(2, 9)
    model = _model(base)
    wanted = mixed(model, slots_of(model, [adapter]), tokens, [1] * 2)
    assert apart(with_mlx_lm(_model(base), output)(mx.array(tokens)), wanted) < 1e-4
    assert read_folder(output, Modules(_model(base)), 4).rank == 4
