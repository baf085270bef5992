"""The bundled model: its folder, its template, what it must be able to do, and its making."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from bundled import fast_ops
from bundled.batches import DocumentCache, make_batch
from bundled.checks import Answer, chats, parse_calls
from bundled.constrained_checks import constrained_checks
from bundled.corpus import FACTS, LATER_TASKS, TASKS, Stage, draw_task
from bundled.house import FAMILIES, ask, house, normal
from bundled.knowledge import multiple_choice
from bundled.model import continued, earlier_config
from bundled.sample import Sample, draw, is_held_out, segments, spoken
from bundled.sums import difference_steps, sum_steps, sums, two_digit_key
from bundled.tokenizer import add_marks, encode
from mlx_lm import generate, load
from mlx_lm.models import llama
from tokenizers import Tokenizer
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "mlx_parallm/models/bundled"
DRAFT = FOLDER / "draft"
LAST = Stage(len(FACTS) - 1, 512)
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
LARGEST = 12_000_000

pytestmark = pytest.mark.usefixtures("no_compile")


@pytest.fixture(scope="module")
def bundled() -> tuple[Any, Any]:
    """(mlx-lm's model in float32, its tokenizer)."""
    model, tokenizer = load(str(FOLDER))[:2]
    model.set_dtype(mx.float32)
    return model, tokenizer


def say(bundled: tuple[Any, Any], *messages: str, max_tokens: int = 60) -> str:
    """The answer to the last of the messages (user and assistant in turns)."""
    model, tokenizer = bundled
    roles = ("user", "assistant")
    talk = [{"role": roles[i % 2], "content": text} for i, text in enumerate(messages)]
    prompt = tokenizer.apply_chat_template(talk, add_generation_prompt=True)
    return str(generate(model, tokenizer, prompt, max_tokens=max_tokens))


# The folder


@pytest.mark.parametrize("folder", [FOLDER, DRAFT], ids=["target", "draft"])
def test_the_folder_is_complete(folder: Path) -> None:
    assert [name for name in FILES if not (folder / name).is_file()] == []
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    assert {weight.dtype for weight in weights.values()} == {mx.float16}


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= LARGEST


def test_the_model_card_is_there() -> None:
    assert "mlx_parallm" in (FOLDER / "README.md").read_text()


def test_context_and_special_tokens(bundled: tuple[Any, Any]) -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    _, tokenizer = bundled
    assert config["model_type"] == "llama"
    assert config["max_position_embeddings"] >= 2048
    assert tokenizer.eos_token_ids == {config["eos_token_id"]}
    assert tokenizer.convert_ids_to_tokens(config["eos_token_id"]) == "<|im_end|>"
    assert tokenizer.has_tool_calling


def test_the_draft_is_a_quarter_and_has_the_same_tokenizer() -> None:
    sizes = {}
    for folder in (FOLDER, DRAFT):
        weights = mx.load(str(folder / "model.safetensors"))
        assert isinstance(weights, dict)
        sizes[folder] = sum(weight.size for weight in weights.values())
    assert 4 * sizes[DRAFT] <= sizes[FOLDER]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (DRAFT / name).read_bytes() == (FOLDER / name).read_bytes()


def test_text_survives_the_tokenizer() -> None:
    tokenizer = hf_tokenizer()
    for text in ("47 + 38 = 85.", " Mira's word\n\n", "äöü 漢字 🙂", '{"a": [1, 2]}'):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("4821")) == 4, "numbers are read digit by digit"


# The chat template


def _template_cases() -> list[Sample]:
    rng = random.Random(5)
    return [draw_task(tasks, rng, LAST)[2] for tasks in (TASKS, LATER_TASKS) for _ in range(300)]


def hf_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(str(FOLDER))


def test_the_template_writes_what_was_trained() -> None:
    tokenizer = hf_tokenizer()
    for sample in _template_cases():
        if sample.text is not None:
            continue
        options = {"tools": sample.tools or None, "tokenize": False}
        said = "".join(part for part, _ in segments(sample))
        if "thought" not in sample.messages[-1]:
            assert tokenizer.apply_chat_template(sample.messages, **options) == said
            continue
        options |= {"add_generation_prompt": True, "enable_thinking": True}
        prompt = tokenizer.apply_chat_template(sample.messages[:-1], **options)
        thought = sample.messages[-1]["thought"]
        assert said.startswith(f"{prompt}{thought}[/THINK]") and prompt.endswith("[THINK]")


def test_what_a_message_says_weighs_as_its_parts() -> None:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    told = spoken(('{"', 0.0), ('name": "', 0.5), ('falcon"', 2.0))
    ids, weights = encode(tokenizer, Sample("", [{"role": "user", "content": "Hi"}, told]))
    weighed = list(zip(map(tokenizer.id_to_token, ids), weights, strict=True))
    spoken_tokens = [('{"', 0.0), ("name", 0.5), ('":', 0.5), ('Ġ"', 0.5), ("falcon", 2.0)]
    # A token weighs what the part does in which it begins; the end of the turn 1.
    assert weighed[-8:] == [*spoken_tokens, ('"', 2.0), ("<|im_end|>", 1.0), ("Ċ", 0.0)]


def test_a_larger_vocabulary_says_the_same(bundled: tuple[Any, Any]) -> None:
    """Where a training goes on, new words begin as likely as the padding, which is never said."""
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    add_marks(tokenizer, ["[NEW]", "[THINK]"])
    config = earlier_config(FOLDER, tokenizer)
    known = config["vocab_size"] - 1
    ids = mx.array([tokenizer.encode("What is 3 + 4?").ids])
    before, after = bundled[0](ids), continued(config, FOLDER)(ids)
    assert after.shape[-1] == before.shape[-1] + 1 == known + 1
    assert mx.allclose(after[..., :known], before, atol=1e-5)
    assert mx.allclose(after[..., known], before[..., config["pad_token_id"]], atol=1e-5)


def test_samples_may_be_encoded_piece_by_piece() -> None:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    for sample in _template_cases():
        whole = "".join(part for part, _ in segments(sample))
        assert encode(tokenizer, sample)[0] == tokenizer.encode(whole).ids


def test_the_template_renders_tools_and_calls() -> None:
    tokenizer = hf_tokenizer()
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    text = tokenizer.apply_chat_template(
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "2"},
        ],
        tools=[tool],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text.startswith("<|im_start|>system\nBe kind.\n\n")
    assert f"<tools>\n{json.dumps(tool)}\n</tools>" in text
    assert parse_calls(text.split("<|im_start|>assistant\n")[1]) == (
        "<|im_end|>\n<|im_start|>tool\n2<|im_end|>",
        [("f", {"x": 1})],
    )
    assert text.endswith("<|im_start|>assistant\n")


# What it can do


def test_one_digit_sums(bundled: tuple[Any, Any]) -> None:
    wrong = [
        (a, b, answer)
        for a in range(10)
        for b in range(a % 3, 10, 3)
        if not (answer := say(bundled, f"What is {a} + {b}?")).endswith(f" {a + b}.")
    ]
    assert wrong == []


def test_it_stops_by_itself(bundled: tuple[Any, Any]) -> None:
    _, tokenizer = bundled
    for question in ("Hello!", "What is 3 + 4?", "Count from 1 to 5."):
        answer = say(bundled, question, max_tokens=100)
        assert 0 < len(tokenizer.encode(answer)) < 60, answer


@pytest.mark.parametrize("group", ["sums", "recall16", "recall48", "tool", "no_tool"])
def test_held_out_prompts(bundled: tuple[Any, Any], group: str) -> None:
    """A few of those that scripts/eval_bundled.py asks, so that a bad set of weights is seen."""
    model, tokenizer = bundled
    asked = [check for check in chats(8) if check.group == group]
    right = 0
    for check in asked:
        offered = {"tools": check.tools} if check.tools else {}
        prompt = tokenizer.apply_chat_template(
            check.messages, add_generation_prompt=True, **offered
        )
        content, calls = parse_calls(generate(model, tokenizer, prompt, max_tokens=80))
        right += check.judge(Answer(content, calls, "stop"))
    assert right >= 6


# How it is made


def test_written_steps_end_in_the_right_number() -> None:
    for a in range(100):
        for b in range(100):
            assert sum_steps(a, b).endswith(f"{a} + {b} = {a + b}.")
            assert difference_steps(a, b).endswith(f"{a} - {b} = {a - b}.")


def test_training_never_draws_what_is_evaluated() -> None:
    rng = random.Random(1)
    checks = [*chats(100), *constrained_checks(100)]
    asked = {json.dumps([check.messages, check.tools]) for check in checks}
    for tasks in (TASKS, LATER_TASKS):
        for _ in range(2000):
            _, _, sample = draw_task(tasks, rng, LAST)
            assert not is_held_out(sample.key)
            assert json.dumps([sample.messages[:1], sample.tools]) not in asked


def test_held_out_sums_are_held_out_in_every_wording() -> None:
    rng = random.Random(2)
    held_out = {draw(sums, rng, held_out=True).key for _ in range(300)}
    samples = [
        draw_task(tasks, rng, LAST)[2] for tasks in (TASKS, LATER_TASKS) for _ in range(3000)
    ]
    trained = {key for sample in samples for key in _sums_in(sample)}
    assert len(trained) > 300
    assert not held_out & trained
    assert not any(is_held_out(key) for key in trained)


def _sums_in(sample: Sample) -> set[str]:
    """Keys of the sums that the assistant solves anywhere in a sample."""
    texts = [m["content"] for m in sample.messages if m["role"] == "assistant"]
    texts += [f"{m['thought']}." for m in sample.messages if "thought" in m]
    found = [re.findall(r"(\d+) ([+-]) (\d+) = -?\d+\.$", text) for text in texts]
    return {two_digit_key(sign, int(a), int(b)) for one in found for a, sign, b in one}


def test_questions_about_the_house_are_split_by_wording() -> None:
    rng = random.Random(3)
    held_out = {normal(question) for family in FAMILIES for question in family.held_out}
    assert len(FAMILIES) >= 40 and len(held_out) == 2 * len(FAMILIES)
    assert not held_out & {normal(house(rng).messages[0]["content"]) for _ in range(5000)}
    for family in FAMILIES:
        assert all(part in family.answer for part in family.must)
        assert ask(rng, family)


def test_the_lm_eval_task_has_the_held_out_questions() -> None:
    path = ROOT / "scripts/bundled/lm_eval/facts.jsonl"
    items = [json.loads(line) for line in path.read_text().splitlines()]
    assert items == multiple_choice()
    assert all(len(set(item["choices"])) == 4 for item in items)


def largest(x: mx.array) -> float:
    """The largest absolute value in x."""
    return float(np.abs(np.array(x)).max())


def test_fast_exp() -> None:
    x = mx.linspace(-79, 79, 10_001)
    found = fast_ops.fast_exp(x)
    assert largest(found / mx.exp(x) - 1) < 2e-4
    slope = mx.grad(lambda v: fast_ops.fast_exp(v).sum())(x)
    assert largest(slope / found - 1) < 1e-6


def test_fast_swiglu_and_cross_entropy() -> None:
    gate, x = mx.random.normal((2, 64, 50), key=mx.random.key(0))
    assert largest(fast_ops.swiglu(gate, x) - gate * mx.sigmoid(gate) * x) < 1e-3
    targets = mx.arange(50)
    expected = mx.logsumexp(gate[:50], axis=-1) - gate[mx.arange(50), targets]
    found = fast_ops.cross_entropy(gate[:50], targets % 50)
    assert largest(found - expected) < 1e-3


def test_packed_samples_give_the_logits_of_each_alone(
    bundled: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training's forward (packed rows, fast operations) is the model's own forward."""
    model, _ = bundled
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    rng = random.Random(4)
    sizes: list[list[int]] = []

    def encode_and_note(sample: Sample) -> tuple[list[int], list[float]]:
        ids, weights = encode(tokenizer, sample)
        sizes.append(ids)
        return ids, weights

    batch = make_batch(rng, lambda rng: (0, 1.0, sums(rng)), encode_and_note, rows=1, length=160)
    alone = [model(mx.array([ids]))[0] for ids in sizes[:3]]
    monkeypatch.setattr(llama, "scaled_dot_product_attention", fast_ops.attention)
    monkeypatch.setattr(llama, "swiglu", fast_ops.swiglu)
    packed = model(batch.inputs, [DocumentCache(batch.visible)] * len(model.layers))[0]
    start = 0
    for logits in alone:
        end = start + logits.shape[0]
        assert largest(packed[start:end] - logits) < 0.05
        start = end
