"""What models that see are loaded from: configs that leave defaults out, folders with code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx_vlm")

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.loader import load_model
from mlx_parallm.models.vision.families import FAMILIES, REFUSED, family_of
from mlx_parallm.models.vision.text_model import ModelArgs
from tests.models.vision.tiny_vision import folder_of

# As llava-hf/llava-1.5-7b-hf and mistral-community/pixtral-12b have them.
VICUNA = {"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064}
NEMO = {"model_type": "mistral", "hidden_size": 5120, "head_dim": 128, "rope_theta": 1e9}


def text_args(text: dict[str, Any], **config: Any) -> dict[str, Any]:
    return ModelArgs({"model_type": "llava", "text_config": text, **config}).text_config


def test_a_config_that_leaves_out_defaults_has_those_of_transformers() -> None:
    vicuna = text_args(VICUNA)
    assert (vicuna["hidden_size"], vicuna["num_hidden_layers"]) == (4096, 32)
    assert vicuna["vocab_size"] == 32064
    assert vicuna["tie_word_embeddings"] is False, "mlx-lm's own default would lose the head"
    assert text_args(VICUNA, tie_word_embeddings=True)["tie_word_embeddings"] is True
    nemo = text_args(NEMO)
    assert (nemo["num_attention_heads"], nemo["num_key_value_heads"]) == (32, 8)
    assert (nemo["head_dim"], nemo["rope_theta"]) == (128, 1e9)


def test_settings_of_rotary_embeddings_have_an_old_and_a_new_name() -> None:
    scaled = {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}
    found = text_args({**VICUNA, "rope_parameters": scaled})
    assert found["rope_theta"] == 5e5
    assert found["rope_scaling"]["factor"] == 4.0


def test_a_text_model_that_transformers_does_not_know_is_left_as_it_is() -> None:
    assert text_args({"model_type": "none such", "width": 3}) == {
        "model_type": "none such",
        "width": 3,
    }


def test_llava_has_the_tower_that_its_config_names() -> None:
    for tower, processor in (("pixtral", "Pixtral"), ("clip_vision_model", "Llava")):
        family = family_of({"model_type": "llava", "vision_config": {"model_type": tower}})
        assert family is not None and processor in family.processor
    other = {"model_type": "llava", "vision_config": {"model_type": "none such"}}
    assert family_of(other) is None


def test_small_gemma4_models_do_not_look_ahead() -> None:
    def whole(**text: Any) -> str | None:
        config = {"vision_config": {"patch_size": 16}, "text_config": text, "model_type": "gemma4"}
        family = family_of(config)
        assert family is not None
        return family.whole

    assert whole() is None
    assert whole(use_bidirectional_attention="vision") == FAMILIES["gemma4"].whole == "in windows"


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_families_that_cannot_be_batched_are_refused_with_the_reason(
    tmp_path: Path, family: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(
        ModelLoadError, match=f"{family} is not supported: .*{REFUSED[family][-20:]}"
    ):
        load_model(str(tmp_path))


def test_code_in_the_folder_is_not_run_unasked(tmp_path: Path) -> None:
    """mlx-vlm's processors would run it."""
    folder = tmp_path / "model"
    shutil.copytree(folder_of("gemma4"), folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["code.Tokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert load_model(str(folder)).vision is not None
    assert not (tmp_path / "ran").exists()
