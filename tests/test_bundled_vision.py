"""The bundled model that sees: its folder, that text stays as it was, what it sees, its making."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import llama
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mlx_parallm.models.loader import load_model

pytest.importorskip("PIL.Image")

from bundled.client import Client, serve
from bundled.sample import is_held_out
from bundled_vision import checks, scenes
from bundled_vision.drawing import draw
from bundled_vision.gelu import gelu
from bundled_vision.grown import Grown, grown_config
from bundled_vision.lessons import MARKS, add_picture_marks, lesson, make_batch, picture_token
from bundled_vision.pool import make_pool, scene_of
from bundled_vision.probes import PROPERTIES, labels
from bundled_vision.questions import question
from bundled_vision.saving import save
from bundled_vision.tower import EDGE, TOKENS, Tower, TowerSize, patches

FOLDER = Path(__file__).resolve().parent.parent / "mlx_parallm/models/bundled"
SEEING = FOLDER / "vision"
LARGEST, LARGEST_TOGETHER = 6_000_000, 12_000_000
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is 47 + 38?"}],
    [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "The code of Mira is falcon. What is the code of Mira?"},
        {"role": "assistant", "content": "The code of Mira is falcon."},
        {"role": "user", "content": "Tell me a story."},
    ],
]


def farthest(first: mx.array, second: mx.array) -> float:
    """The largest difference of two entries."""
    return float(np.abs(np.array(first) - np.array(second)).max())


def test_it_is_small() -> None:
    own = sum(file.stat().st_size for file in SEEING.iterdir())
    together = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file())
    assert own <= LARGEST
    assert together <= LARGEST_TOGETHER


def test_text_is_read_as_the_text_model_reads_it() -> None:
    text, seeing = AutoTokenizer.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(SEEING)
    old, new = load_model("bundled"), load_model("bundled/vision", dtype="float32")
    for chat in CHATS:
        offered: tuple[list[Any] | None, ...] = (None, [TOOL])
        for tools in offered:
            ids = [
                tokenizer.apply_chat_template(
                    chat, tools=tools, add_generation_prompt=True, return_dict=False
                )
                for tokenizer in (text, seeing)
            ]
            assert ids[0] == ids[1]
            expected = old.model(mx.array([ids[0]]))
            found = new.model(mx.array([ids[0]]))[..., : expected.shape[-1]]
            assert farthest(expected, found) < 1e-3


def grown(rng: random.Random) -> tuple[Grown, dict[str, Any], llama.Model]:
    """The bundled text model with new parts at random."""
    old = json.loads((FOLDER / "config.json").read_text())
    config = grown_config(old, len(MARKS))
    shell = llama.Model(llama.ModelArgs.from_dict(config))
    loaded: Any = mx.load(str(FOLDER / "model.safetensors"))
    weights = {name: weight.astype(mx.float32) for name, weight in loaded.items()}
    mx.random.seed(rng.getrandbits(32))
    return Grown(weights, shell, old["pad_token_id"]), config, shell


def test_whatever_the_new_parts_learn_text_stays() -> None:
    made, _, shell = grown(random.Random(1))
    # The head's begin as zeros.
    made["lm_head:weight|right"] = mx.random.normal(made["lm_head:weight|right"].shape)
    shell.load_weights(made.weights())
    ids = mx.array([[1, 300, 17, 2000, 42, 3, 299, 1024]])
    expected = load_model("bundled").model(ids)
    assert farthest(expected, shell(ids)[..., : expected.shape[-1]]) < 1e-3


def test_the_layout_is_that_of_idefics3(tmp_path: Path) -> None:
    """mlx-vlm sees with the saved weights what the training's tower sees."""
    load = pytest.importorskip("mlx_vlm.utils").load_model
    made, config, _ = grown(random.Random(2))
    tower, size = Tower(TowerSize(), config["hidden_size"]), TowerSize()
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    add_picture_marks(tokenizer)
    save(tmp_path, tower, made, size, config, tokenizer)
    model = load(tmp_path)
    picture = np.random.default_rng(1).integers(0, 256, (1, EDGE, EDGE, 3), dtype=np.uint8)
    pixels = mx.array(picture.astype(np.float32) / 127.5 - 1)
    pooled, *_ = model.vision_model(pixels)
    found = model.connector(pooled)
    expected = tower(mx.array(patches(picture)))
    assert found.shape == expected.shape == (1, TOKENS, config["hidden_size"])
    assert farthest(found, expected) < 5e-3 * float(np.abs(np.array(expected)).max())


def test_gelu_and_its_gradient() -> None:
    def exact(x: mx.array) -> mx.array:
        return 0.5 * x * (1 + mx.tanh(0.7978845608 * (x + 0.044715 * x**3)))

    x = mx.linspace(-9, 9, 2001)
    assert farthest(gelu(x), exact(x)) < 5e-4
    ones = [mx.ones_like(x)]
    slopes = [mx.vjp(f, [x], ones)[1][0] for f in (gelu, exact)]
    assert farthest(slopes[0], slopes[1]) < 5e-3


def test_training_and_evaluation_have_no_picture_in_common() -> None:
    pool = make_pool(3, 40, EDGE)
    assert not any(is_held_out(scene.key) for scene in pool.scenes)
    rng = random.Random(4)
    assert all(is_held_out(scene_of(rng, held_out=True).key) for _ in range(20))
    drawn, pictures = pool.some(rng, 5)
    assert len(drawn) == 5
    assert pictures.shape == (5, EDGE, EDGE, 3)
    assert pictures.dtype == np.uint8


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_questions_ask_for_what_is_there(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(40):
        scene = scenes.KINDS[kind][0](rng)
        asked = question(rng, scene)
        if asked.aspect == "count":
            assert asked.answer == str(len(scene.things))
        if asked.aspect == "colour":
            assert asked.answer in {thing.colour for thing in scene.things}
        if asked.aspect in ("digit", "number", "word"):
            assert asked.answer == scene.things[0].text.lower()
        assert draw(rng, scene, EDGE).shape == (EDGE, EDGE, 3)
        truth = labels([scene])[0]
        assert truth[list(PROPERTIES).index("kind")] == list(scenes.KINDS).index(kind)


def test_a_batch_asks_for_answers_only() -> None:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    add_picture_marks(tokenizer)
    rng, size = random.Random(5), tokenizer.get_vocab_size()
    lessons = [lesson(rng, tokenizer, scene_of(rng, held_out=False)) for _ in range(4)]
    batch = make_batch(lessons, picture_token(tokenizer), size)
    inputs = np.array(batch.inputs)
    places = inputs[inputs >= size]
    assert places.tolist() == list(range(size, size + 4 * TOKENS))
    flat = inputs.reshape(-1)
    assert np.array(batch.targets).tolist() == flat[np.array(batch.rows) + 1].tolist()
    assert max(np.array(batch.targets)) < size


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    pytest.importorskip("mlx_vlm")
    with serve(SEEING) as url:
        yield Client(url)


@pytest.mark.parametrize("group", checks.GROUPS[:4], ids=lambda group: group.aspect)
def test_it_sees(client: Client, group: checks.Group) -> None:
    """A few pictures; scripts/eval_bundled.py --vision asks about many."""
    asked = checks.shown(group, 12)
    right = [one.is_right(client.chat(one.messages, [], 24).content) for one in asked]
    assert sum(right) >= 9
    empty = checks.shown(group, 4, blank=True)
    assert not all(one.is_right(client.chat(one.messages, [], 24).content) for one in empty)


def test_it_still_adds(client: Client) -> None:
    said = client.chat([{"role": "user", "content": "What is 47 + 38?"}], [], 60)
    assert "85" in said.content
