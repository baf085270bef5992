"""state-spaces checkpoints against mlx-lm's own format with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_parallm.engine.engine import Engine
from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.loader import load_model
from mlx_parallm.models.mamba_ssm import is_mamba_ssm, padded_vocab_size, translate_config
from tests.engine import mock
from tests.engine.driver import Driver, greedy, oracle
from tests.models import architectures, checkpoints, torch_file

# As in state-spaces/mamba2-1.3b, but small.
CONFIG: dict[str, Any] = {
    "d_model": 32,
    "d_intermediate": 0,
    "n_layer": 2,
    "vocab_size": mock.VOCAB,
    "ssm_cfg": {"layer": "Mamba2", "d_state": 32, "headdim": 8, "ngroups": 2},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}
PADDED = 272
PROMPTS = [[3, 4, 5], [9], list(range(3, 60)), list(range(250, 90, -1)), [7] * 12]
IDS = mx.array([[5, 6, 7, 80, 90, 7]])


def _mlx_config(**own: Any) -> dict[str, Any]:
    """mlx-lm's words for CONFIG, written by hand."""
    config = {
        "model_type": "mamba2",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "vocab_size": PADDED,
        "state_size": 32,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 2,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": True,
        "layer_norm_epsilon": 1e-5,
        "time_step_limit": [0.0, 1e30],
        "time_step_rank": "auto",
    }
    return config | own


def _theirs(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """mlx-lm's weights under mamba_ssm's names and in torch's layout."""
    found = {}
    for name, array in weights.items():
        name = name.replace("backbone.embeddings.", "backbone.embedding.")
        if name.endswith("conv1d.weight"):
            array = mx.contiguous(array.moveaxis(2, 1))
            assert array.shape[1] == 1
        found[name] = array
    return found


@pytest.fixture(scope="module")
def weights() -> dict[str, mx.array]:
    """Random ones, under mlx-lm's names."""
    architectures.TINY["mamba2:checkpoint"] = _mlx_config()
    try:
        model = architectures.build("mamba2:checkpoint")
    finally:
        del architectures.TINY["mamba2:checkpoint"]
    return dict(tree_flatten(model.parameters()))


def test_both_formats_are_one_model(tmp_path: Path, weights: dict[str, mx.array]) -> None:
    own = load_model(str(checkpoints.write(tmp_path / "mlx", _mlx_config(), weights)))
    theirs = _theirs(weights)
    # The original writes the tied head a second time.
    theirs["lm_head.weight"] = theirs["backbone.embedding.weight"]
    original = load_model(str(checkpoints.write(tmp_path / "original", CONFIG, theirs)))
    assert mx.array_equal(own.model(IDS), original.model(IDS))
    assert original.config["model_type"] == "mamba2"
    # Padding is no part of the vocabulary.
    assert (original.vocab_size, own.vocab_size) == (mock.VOCAB, PADDED)
    assert original.model(IDS).shape[-1] == PADDED
    assert {name: original.config[name] for name in CONFIG} == CONFIG


def test_a_torch_file(
    tmp_path: Path, weights: dict[str, mx.array], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights as torch.save writes them."""
    folder = checkpoints.write(tmp_path, CONFIG, _theirs(weights))
    right = load_model(str(folder)).model(IDS)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"no \*\.safetensors"):
        load_model(str(folder))
    torch_file.save(folder / "pytorch_model.bin", _theirs(weights), monkeypatch)
    loaded = load_model(str(folder))
    assert mx.array_equal(loaded.model(IDS), right)
    assert loaded.vocab_size == mock.VOCAB


def test_an_untied_head(tmp_path: Path, weights: dict[str, mx.array]) -> None:
    head = mx.random.normal((PADDED, 32), key=mx.random.key(1))
    config = _mlx_config(tie_word_embeddings=False)
    own = load_model(
        str(checkpoints.write(tmp_path / "mlx", config, weights | {"lm_head.weight": head}))
    )
    theirs = _theirs(weights) | {"lm_head.weight": head}
    untied = CONFIG | {"tie_embeddings": False}
    original = load_model(str(checkpoints.write(tmp_path / "original", untied, theirs)))
    assert mx.array_equal(own.model(IDS), original.model(IDS))


def test_the_flat_entries_of_converted_checkpoints(
    tmp_path: Path, weights: dict[str, mx.array]
) -> None:
    """Such as /model_info of seeds shows: no ssm_cfg, everything side by side."""
    flat = {
        "d_model": 32,
        "n_layer": 2,
        "vocab_size": PADDED,
        "d_state": 32,
        "d_conv": 4,
        "expand": 2,
        "headdim": 8,
        "ngroups": 2,
        "tie_word_embeddings": True,
    }
    converted = load_model(str(checkpoints.write(tmp_path / "flat", flat, _theirs(weights))))
    own = load_model(str(checkpoints.write(tmp_path / "mlx", _mlx_config(), weights)))
    assert mx.array_equal(own.model(IDS), converted.model(IDS))


def test_the_batch_is_alone(
    make_engine: Callable[..., Engine],
    tmp_path: Path,
    weights: dict[str, mx.array],
    no_compile: None,
) -> None:
    """Law 1, with rows that join while others run."""
    path = str(checkpoints.write(tmp_path, CONFIG, _theirs(weights)))
    engine = make_engine(lambda: load_model(path), max_batch_size=4, prefill_chunk=16)
    rows = [greedy(p, 6 + i, ignore_eos=True, logprobs=0) for i, p in enumerate(PROMPTS)]
    driver = Driver(engine)
    for place, row in enumerate(rows[2:], start=1):
        driver.at_step(2 * place, lambda row=row: driver.submit(row))  # type: ignore[misc]
    driver.run(*rows[:2])
    for row in rows:
        tokens, scores = oracle(engine, row.prompt, row.params.max_tokens)
        assert driver.tokens(row) == tokens
        assert max(tokens) < mock.VOCAB
        # mlx-lm's are normalised over the padding too.
        assert len(scores) == len(driver.logprobs(row))


def test_mamba_1(tmp_path: Path) -> None:
    config = {
        "d_model": 32,
        "n_layer": 2,
        "vocab_size": mock.VOCAB,
        "ssm_cfg": {},
        "pad_vocab_size_multiple": 8,
    }
    translated = translate_config(config) | {"vocab_size": padded_vocab_size(config)}
    architectures.TINY["mamba:checkpoint"] = translated
    try:
        model = architectures.build("mamba:checkpoint")
    finally:
        del architectures.TINY["mamba:checkpoint"]
    theirs = _theirs(dict(tree_flatten(model.parameters())))
    loaded = load_model(str(checkpoints.write(tmp_path, config, theirs)))
    assert loaded.config["model_type"] == "mamba"
    assert mx.allclose(loaded.model(IDS), model(IDS), atol=1e-5)


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({"attn_layer_idx": [1]}, "attention layers"),
        ({"d_intermediate": 8}, "MLP layers"),
        ({"rms_norm": False}, "rms_norm"),
        ({"ssm_cfg": {"layer": "Mamba2", "D_has_hdim": True}}, "D_has_hdim"),
        ({"ssm_cfg": {"layer": "Mamba2", "norm_before_gate": True}}, "norm_before_gate"),
        ({"ssm_cfg": {"layer": "Mamba2", "rmsnorm": False}}, "rmsnorm"),
        ({"ssm_cfg": {"layer": "Mamba2", "d_ssm": 16}}, "d_ssm"),
    ],
)
def test_what_mlx_lm_does_not_have_is_refused(own: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        translate_config(CONFIG | own)


def test_other_configs_are_not_taken_for_it() -> None:
    assert is_mamba_ssm(CONFIG)
    assert is_mamba_ssm(translate_config(CONFIG))
    # transformers writes both.
    assert not is_mamba_ssm({"model_type": "mamba", "d_model": 1, "n_layer": 1, "vocab_size": 1})
    assert padded_vocab_size({"vocab_size": 50277, "pad_vocab_size_multiple": 16}) == 50288
