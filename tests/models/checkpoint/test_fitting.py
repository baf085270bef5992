"""A checkpoint becomes parameters that can take the place of a model's own, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_parallm.cpu import blas
from mlx_parallm.cpu.linear import optimize_linears
from mlx_parallm.errors import BodyTooLargeError, InvalidRequestError, NotFoundError
from mlx_parallm.models.checkpoint.fitting import Fitting
from mlx_parallm.models.checkpoint.parameters import Parameters
from mlx_parallm.models.checkpoint.upload import Upload, merged, read_body, read_path
from mlx_parallm.models.loader import float32_bytes
from tests.models.lora.forwards import pack
from tests.models.lora.test_mlx_lm import tiny_mixtral

pytestmark = pytest.mark.usefixtures("no_compile")

Arrays = dict[str, mx.array]


def parameters_of(model: Any) -> Arrays:
    return dict(tree_flatten(model.parameters()))


def saved(arrays: Arrays, folder: Path) -> Upload:
    file = folder / "model.safetensors"
    mx.save_safetensors(str(file), arrays)
    return read_body(file.read_bytes())


def fit(model: Any, upload: Upload, dtype: mx.Dtype = mx.float32) -> Arrays:
    fitting = Fitting(model, dtype, Parameters(model).now())
    for _ in fitting.steps(upload):
        pass
    return fitting.made


def assert_equal(found: Arrays, wanted: Arrays) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert mx.array_equal(found[name], array).item(), name


def test_names_of_the_hub_are_translated(tmp_path: Path) -> None:
    """Mixtral's experts are modules of their own there, and one stack in mlx-lm."""
    wanted, names = parameters_of(tiny_mixtral()), {"gate": "w1", "down": "w2", "up": "w3"}
    hub: Arrays = {}
    for path, array in wanted.items():
        home, _, rest = path.partition(".switch_mlp.")
        if rest:
            for expert, part in enumerate(array):
                hub[f"{home}.experts.{expert}.{names[rest.split('_')[0]]}.weight"] = part
        else:
            hub[path] = array
    assert_equal(fit(tiny_mixtral(), saved(hub, tmp_path)), wanted)
    assert_equal(fit(tiny_mixtral(), saved(wanted, tmp_path)), wanted)
    half = {name: array for name, array in hub.items() if ".experts.2." not in name}
    with pytest.raises(InvalidRequestError, match="not a checkpoint of this model"):
        fit(tiny_mixtral(), saved(half, tmp_path))


@pytest.mark.parametrize("kind", ["F64", "F32", "F16", "BF16"])
def test_types_are_those_of_the_model(
    llama_factory: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    from safetensors.numpy import save

    model = llama_factory(1).model
    if kind == "F64":
        arrays = {n: np.array(a).astype(np.float64) for n, a in parameters_of(model).items()}
        upload = read_body(save(arrays))
    else:
        dtype = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}[kind]
        short = {name: array.astype(dtype) for name, array in parameters_of(model).items()}
        upload = saved(short, tmp_path)
    assert {tensor.kind for tensor in upload.tensors.values()} == {kind}
    made = fit(llama_factory(0).model, upload)
    for name, array in parameters_of(model).items():
        assert made[name].dtype == mx.float32
        assert mx.allclose(made[name], array, atol=0.03).item()


def test_values_that_a_type_cannot_hold(llama_factory: Callable[..., Any], tmp_path: Path) -> None:
    model = llama_factory(0).model
    model.set_dtype(mx.float16)
    arrays = parameters_of(llama_factory(1).model)
    arrays["model.norm.weight"] = mx.full((32,), 1e6)
    with pytest.raises(InvalidRequestError, match="float16 cannot hold"):
        fit(model, saved(arrays, tmp_path), mx.float16)


def test_the_layout_of_large_products_is_kept(
    llama_factory: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies transposed for the BLAS lies so again; nothing else does."""

    class NoOwnProducts:
        own_products = False

    monkeypatch.setattr(blas, "info", NoOwnProducts)
    sizes = {"hidden_size": 1024, "intermediate_size": 64, "num_hidden_layers": 1}
    model = llama_factory(0, **sizes).model
    assert optimize_linears(model) > 0
    arrays = parameters_of(llama_factory(1, **sizes).model)
    made = fit(model, saved(arrays, tmp_path))
    now = parameters_of(model)
    for name, array in now.items():
        assert np.array(made[name], copy=False).strides == np.array(array, copy=False).strides, name
    assert_equal(made, arrays)


def test_places_in_lists_and_modules(llama_factory: Callable[..., Any]) -> None:
    """Other parameters compute, and the first ones again."""
    model, other, tokens = llama_factory(0).model, llama_factory(1).model, mx.array([[5, 6, 7]])
    parameters = Parameters(model)
    before, wanted = model(tokens), other(tokens)
    mine = parameters.now()
    parameters.put(parameters_of(other))
    lazy = model(tokens)  # built now, computed after the next change
    parameters.put(mine)
    assert mx.array_equal(lazy, wanted).item() and mx.array_equal(model(tokens), before).item()


def test_paths(llama_factory: Callable[..., Any], tmp_path: Path) -> None:
    arrays = parameters_of(llama_factory(0).model)
    whole = saved(arrays, tmp_path)
    assert read_path(str(tmp_path), 1 << 20).digest() == whole.digest()
    with pytest.raises(BodyTooLargeError):
        read_path(str(tmp_path), 1000)
    with pytest.raises(NotFoundError):
        read_path(str(tmp_path / "other"), 1 << 20)
    with pytest.raises(InvalidRequestError, match="two tensors of this name"):
        merged([whole, whole])


def test_packed_weights_may_come_plain(llama_factory: Callable[..., Any]) -> None:
    """How large an upload may be goes by plain weights, whatever the model computes with."""
    model = llama_factory(0).model
    plain = float32_bytes(model)
    assert plain == sum(array.nbytes for array in parameters_of(model).values())
    packed = float32_bytes(pack(model, "packed"))
    # Scales and offsets are counted besides.
    assert plain <= packed < 1.2 * plain
