"""The recall table of Extended Mind: its texts, and a short run with the bundled model."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from bundled.words import FILLER, NAMES
from extended_mind.asking import Asker, shuffled
from extended_mind.texts import make_facts, make_text, most_facts

from mlx_parallm.engine.model_runner import ModelRunner
from mlx_parallm.memory.request import MemoryRequest
from mlx_parallm.models.loader import load_model
from tests.waiting import PATIENCE_S

SCRIPT = Path(__file__).parent.parent / "scripts" / "eval_extended_mind.py"


@pytest.fixture(scope="module")
def asker() -> Asker:
    loaded = load_model("bundled")
    ModelRunner(loaded.model, loaded.vocab_size)
    return Asker(loaded)


@pytest.mark.parametrize("size", [120, 1000])
def test_a_text_says_each_fact_once_and_has_its_size(asker: Asker, size: int) -> None:
    rng = random.Random(3)
    text = make_text(
        rng, make_facts(rng, min(32, most_facts(size, asker.count))), size, asker.count
    )
    assert size - 12 <= asker.count(text.content) <= size
    for fact in text.facts:
        assert text.content.count(fact.sentence) == 1
        assert text.content.count(f"{fact.relation} of {fact.name} ") == 1
    assert len({fact.name for fact in text.facts}) == len(text.facts)
    rest = text.content
    for sentence in [*FILLER, *(fact.sentence for fact in text.facts)]:
        rest = rest.replace(sentence, "")
    assert not rest.strip()


def test_answers_of_a_batch_are_those_of_each_question_alone(asker: Asker) -> None:
    rng = random.Random(4)
    text = make_text(rng, make_facts(rng, 6), 150, asker.count)
    questions = [fact.question for fact in text.facts] + ["Hello!"]
    view = asker.remember(text.content, "text", window=128, stride=64)
    request = MemoryRequest(view, topk=4, local_offset=64)
    together = asker.answers(questions, request=request)
    assert together == [asker.answers([question], request=request)[0] for question in questions]
    in_context = asker.answers(questions, before=text.content)
    assert in_context == [asker.answers([q], before=text.content)[0] for q in questions]


def test_shuffled_memories_have_the_same_keys_and_other_values(asker: Asker) -> None:
    view = asker.remember(" ".join(NAMES[:40]), "names", window=128, stride=64)
    mixed = shuffled(view, 1)
    for one, other in zip(view.layers, mixed.layers, strict=True):
        assert mx.allclose(one.unit, other.unit, atol=1e-6)
        assert mx.allclose(one.norms, other.norms, rtol=1e-5)
        before, after = np.array(one.values[0]), np.array(other.values[0])
        assert not np.allclose(before, after)
        assert (np.sort(before[:, 0]) == np.sort(after[:, 0])).all()


def test_the_bundled_model_recalls_from_memory_and_from_nothing_else(tmp_path: Path) -> None:
    written, drawn = tmp_path / "recall.json", tmp_path / "recall.png"
    command = [sys.executable, str(SCRIPT), "--quick", "--json", str(written), "--plot", str(drawn)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("| tokens | questions | none | in context | k = 1 |")
    assert drawn.read_bytes()[:4] == b"\x89PNG"
    rows = json.loads(written.read_text())["rows"]
    assert [row["tokens"] for row in rows] == [120, 600]
    for row in rows:
        assert row["k = 4"] >= 0.75
        for control in ("none", "V shuffled", "other text", "wrong facts"):
            assert row[control] <= 0.25, control
