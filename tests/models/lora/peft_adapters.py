"""Random adapters made by PEFT on torch, which is the oracle too. Needs the `rl` extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.models.lora.forwards import plain_parameters

torch: Any = pytest.importorskip("torch", reason="torch is not installed: extra `rl`")
peft: Any = pytest.importorskip("peft", reason="peft is not installed: extra `rl`")


def torch_llama(model: Any, config: dict[str, Any]) -> Any:
    """The torch twin of a tiny Llama of mlx-lm; packed weights are plain in it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    wanted = {key: value for key, value in config.items() if key != "model_type"}
    twin: Any = LlamaForCausalLM(LlamaConfig(**wanted)).eval()
    weights = {
        name: torch.from_numpy(np.array(array)) for name, array in plain_parameters(model).items()
    }
    missing = twin.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= {"lm_head.weight"}  # where it is tied
    return twin


def peft_adapter(folder: Path, twin: Any, seed: int, **settings: Any) -> Any:
    """A random adapter, saved by PEFT; returns the adapted twin, which is changed.

    Args:
        settings: of LoraConfig.
    """
    torch.manual_seed(seed)  # of the weights that PEFT draws itself
    adapted = peft.get_peft_model(twin, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if not value.requires_grad:
                continue
            noise = torch.randn(value.shape, generator=generator)
            if "lora_magnitude" in name:
                value *= 1 + 0.1 * noise
            else:
                value += 0.2 * noise
    adapted.save_pretrained(str(folder))
    return adapted.eval()


def logits_of(twin: Any, tokens: np.ndarray) -> mx.array:
    """(B, T, V) of tokens (B, T)."""
    with torch.no_grad():
        return mx.array(twin(torch.from_numpy(tokens)).logits.numpy())
