"""Converted adapters against PEFT on torch, in both directions. Needs the `rl` extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import save_config, save_model

from mlx_parallm.models.loader import load_as_stored
from mlx_parallm.tools import convert_adapter, merge_lora
from tests.models.lora.adapters import ALL, mlx_lm_adapter, with_mlx_lm
from tests.models.lora.forwards import apart, some_tokens
from tests.models.lora.peft_adapters import logits_of, peft, peft_adapter, torch_llama

pytestmark = [
    pytest.mark.usefixtures("no_compile"),
    pytest.mark.filterwarnings("ignore"),  # of PEFT and transformers, about each other
]

NAMES = [name.rpartition(".")[2] for name in ALL]
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 8, "target_modules": NAMES},
    "rslora": {"r": 4, "lora_alpha": 8, "target_modules": NAMES, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 8, "target_modules": NAMES, "use_dora": True},
    "patterns": {
        "r": 4,
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"v_proj": 16},
        "layers_to_transform": [1],
    },
}


@pytest.fixture
def base(llama_factory: Any, tmp_path: Path) -> tuple[Path, Any]:
    """A tiny Llama in a folder, and as a function that makes its torch twin."""
    loaded, folder = llama_factory(), tmp_path / "base"
    save_model(folder, loaded.model)
    save_config(dict(loaded.config), folder / "config.json")
    return folder, lambda: torch_llama(loaded.model, loaded.config)


@pytest.mark.parametrize("case", SETTINGS)
def test_peft_to_mlx_lm(base: tuple[Path, Any], tmp_path: Path, case: str) -> None:
    folder, twin = base
    adapted = peft_adapter(tmp_path / "peft", twin(), 1, **SETTINGS[case])
    tokens = some_tokens(2, 12)
    wanted = logits_of(adapted, tokens)
    source, model = str(tmp_path / "peft"), ["--model-path", str(folder)]
    assert convert_adapter.main([source, str(tmp_path / "mlx"), *model]) == 0
    oracle = with_mlx_lm(load_as_stored(str(folder))[0], tmp_path / "mlx")
    assert apart(oracle(mx.array(tokens)), wanted) < 1e-4
    merged = ["--adapter", source, "--output", str(tmp_path / "merged")]
    assert merge_lora.main([*model, *merged]) == 0
    assert apart(load_as_stored(str(tmp_path / "merged"))[0](mx.array(tokens)), wanted) < 1e-4


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_mlx_lm_to_peft(base: tuple[Path, Any], tmp_path: Path, kind: str) -> None:
    folder, twin = base
    keys = [*ALL, "lm_head"] if kind == "lora" else list(ALL)
    model = load_as_stored(str(folder))[0]
    mlx_lm_adapter(tmp_path / "mlx", model, 1, keys=keys, kind=kind, scale=3.0)
    output = tmp_path / "peft"
    arguments = [str(tmp_path / "mlx"), str(output), "--model-path", str(folder)]
    assert convert_adapter.main(arguments) == 0
    adapted = peft.PeftModel.from_pretrained(twin(), str(output)).eval()
    tokens = some_tokens(2, 12)
    oracle = with_mlx_lm(load_as_stored(str(folder))[0], tmp_path / "mlx")
    assert apart(oracle(mx.array(tokens)), logits_of(adapted, tokens)) < 1e-4
