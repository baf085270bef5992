"""What transformers 5 writes into config.json is found by the names that mlx-lm's models read."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_parallm.models.checkpoint.config_names import with_older_names

LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"rope_theta": 5e5, "rope_type": "default"}, {"rope_theta": 5e5}),
        (
            {"rope_theta": 5e5, **LLAMA3},
            {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "type": "llama3"}},
        ),
        (
            {"rope_theta": 1e6, "rope_type": "default", "mrope_section": [1, 1, 2]},
            {
                "rope_theta": 1e6,
                "rope_scaling": {
                    "rope_type": "default",
                    "type": "default",
                    "mrope_section": [1, 1, 2],
                },
            },
        ),
        (
            {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
    ],
)
def test_rotary_embeddings(written: dict[str, Any], read: dict[str, Any]) -> None:
    config = {"model_type": "llama", "rope_parameters": written}
    assert with_older_names(config) == {**config, **read}
    inside = {"model_type": "x", "text_config": config}
    assert with_older_names(inside)["text_config"] == {**config, **read}


def test_layers_of_two_kinds() -> None:
    config: dict[str, Any] = {
        "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
    }
    found = with_older_names(config)
    assert found["rope_theta"] == 1e6
    assert found["rope_local_base_freq"] == 1e4
    assert found["rope_scaling"]["factor"] == 8.0
    assert found["sliding_window_pattern"] == 6


def test_what_is_there_stays() -> None:
    config = {"rope_theta": 7.0, "rope_parameters": {"rope_theta": 8.0, "rope_type": "default"}}
    assert with_older_names(config)["rope_theta"] == 7.0
    assert with_older_names({"num_local_experts": 4})["num_experts"] == 4
    assert with_older_names({"rope_parameters": None}) == {"rope_parameters": None}


def test_layers_that_differ_by_their_kind() -> None:
    sliding = ["sliding_attention"] * 2 + ["full_attention"]
    cohere = with_older_names({"model_type": "cohere2", "layer_types": sliding})
    assert cohere["sliding_window_pattern"] == 3
    linear = ["linear_attention", "full_attention"] * 2
    qwen = with_older_names({"model_type": "qwen3_5_text", "layer_types": linear})
    assert qwen["full_attention_interval"] == 2
    own = {"2": {"head_dim": 512, "num_key_value_heads": 1}}
    gemma = with_older_names(
        {"model_type": "gemma4_text", "layer_types": sliding, "per_layer_config": own}
    )
    assert (gemma["global_head_dim"], gemma["num_global_key_value_heads"]) == (512, 1)
    plain = {"model_type": "llama", "layer_types": ["full_attention"] * 2}
    assert with_older_names(plain) == plain
