"""Which folder a name means, and what a loaded model says about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.loader import LoadedModel, describe, load_model, resolve
from tests.conftest import tiny_llama
from tests.engine import mock
from tests.models import checkpoints

pytestmark = pytest.mark.usefixtures("no_compile")


@pytest.fixture(scope="module")
def original() -> LoadedModel:
    return tiny_llama(seed=5)


@pytest.fixture
def folder(original: LoadedModel, tmp_path: Path) -> Path:
    weights: dict[str, mx.array] = dict(tree_flatten(original.model.parameters()))
    return checkpoints.write(tmp_path / "model", original.config, weights)


def logits(loaded: LoadedModel) -> mx.array:
    result: mx.array = loaded.model(mx.array([[5, 6, 7]]))
    return result.astype(mx.float32)


def test_a_folder_gives_the_model_that_was_saved(original: LoadedModel, folder: Path) -> None:
    loaded = load_model(str(folder))
    assert mx.allclose(logits(loaded), logits(original), atol=1e-5).item()
    assert (loaded.path, loaded.folder) == (str(folder), folder)
    assert loaded.eos_token_ids == {mock.EOS}
    assert loaded.max_model_len == mock.CONTEXT
    assert loaded.vocab_size == mock.VOCAB
    assert loaded.quantization is None
    assert loaded.num_parameters == original.num_parameters
    assert loaded.nbytes == 4 * loaded.num_parameters
    text = "hi 😀"
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(text)) == text


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtypes(original: LoadedModel, folder: Path, dtype: str) -> None:
    loaded = load_model(str(folder), dtype=dtype)
    assert loaded.dtype == dtype
    assert loaded.nbytes == loaded.num_parameters * (4 if dtype == "float32" else 2)
    assert mx.allclose(logits(loaded), logits(original), atol=0.5).item()


@pytest.mark.skipif(
    mx.default_device().type != mx.DeviceType.cpu, reason="a GPU keeps the checkpoint's type"
)
def test_half_precision_checkpoints_become_float32_on_a_cpu(folder: Path) -> None:
    weights: Any = mx.load(str(folder / "model.safetensors"))
    halves = {name: array.astype(mx.bfloat16) for name, array in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), halves)
    assert load_model(str(folder)).dtype == "float32"


@pytest.mark.parametrize(("asked", "length"), [(None, 512), (100, 100), (100_000, 512)])
def test_the_context_can_be_made_shorter(folder: Path, asked: int | None, length: int) -> None:
    assert load_model(str(folder), max_model_len=asked).max_model_len == length


@pytest.mark.parametrize(
    ("config", "length", "vocab"),
    [
        ({"max_position_embeddings": 64, "vocab_size": 99}, 64, 99),
        ({"n_positions": 32, "n_vocab": 50}, 32, 50),
        ({"text_config": {"max_position_embeddings": 7, "vocab_size": 80}}, 7, 80),
        ({"vocab_size": 10, "text_config": {"vocab_size": 20, "n_ctx": 9}}, 9, 20),
        ({}, 4096, mock.VOCAB),
    ],
)
def test_configs_name_things_differently(
    original: LoadedModel, config: dict[str, Any], length: int, vocab: int
) -> None:
    found = describe(original.model, original.tokenizer, config, "x", Path())
    assert (found.max_model_len, found.vocab_size) == (length, vocab)


# Names


def test_the_bundled_model_needs_no_folder() -> None:
    assert (resolve("bundled") / "config.json").is_file()


def test_a_folder_wins_over_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("model") == Path("model")
    assert resolve("./model").samefile(folder)


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere-at-all", "nowhere", "a/b/c"])
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(ModelLoadError, match="no such folder"):
        resolve(name)


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="is a file"):
        resolve(str(folder / "config.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", "no model_type"),
        ('{"vocab_size": 3}', "no model_type"),
        ('{"model_type": "unheard_of"}', "unheard_of"),
    ],
)
def test_broken_configs(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=message):
        load_model(str(folder))


def test_a_config_that_does_not_fit_its_weights(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(ModelLoadError):
        load_model(str(folder))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_missing_files(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ModelLoadError, match=missing.split(".")[-1]):
        load_model(str(folder))
