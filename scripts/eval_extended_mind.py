"""Does a model use its memories? Key-value recall, with the facts in context or in memory only.

    python scripts/eval_extended_mind.py --output recall.json --plot recall.png

Trains a tiny Llama (2 layers, width 96, 4 query and 2 kv heads, 0.2M parameters) to say the
value of a key, with 4, then 16, then 48 facts scattered in filler and the loss on answers
only. Then 32 facts are hidden among filler in texts of growing length, and asked for: without
the text, with the text in context, and with the text as memories. The negative controls have
the facts' values permuted, or another text's memories.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama

import mlx_parallm  # noqa: F401  opens the fast BLAS before MLX is imported
from mlx_parallm.memory.request import MemoryRequest
from mlx_parallm.memory.view import MemoryView, build_layer
from mlx_parallm.models.attention import install_attention
from mlx_parallm.models.base import MAX_WIDTH, BatchedCache
from mlx_parallm.models.capture import Capture, windows
from mlx_parallm.models.cpu.allocator import keep_freed_memory

KEYS, VALUES, FILLERS = 128, 64, 32
ASK = 0
FIRST_KEY = 1
FIRST_VALUE = FIRST_KEY + KEYS
FIRST_FILLER = FIRST_VALUE + VALUES
VOCAB = FIRST_FILLER + FILLERS
FACTS = 32
QUESTIONS = 24  # of a training text, some of them twice
CONFIG = {
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,  # to say what was seen needs no learning then
}


@dataclass
class Stage:
    """One part of the curriculum. accuracy: go on once the answers are this good."""

    facts: int
    length: int
    accuracy: float


STAGES = (Stage(4, 16, 0.95), Stage(16, 56, 0.95), Stage(48, 160, 0.98))


def make_text(rng: np.random.Generator, facts: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """`length` tokens of filler with facts (a key and its value) in it.

    Returns:
        the text, and (facts, 2) keys and values.
    """
    keys = FIRST_KEY + rng.permutation(KEYS)[:facts]
    values = FIRST_VALUE + rng.integers(0, VALUES, facts)
    # Filler and facts in random order; each fact is two tokens.
    slots = length - facts
    places = np.sort(rng.permutation(slots)[:facts])
    text = FIRST_FILLER + rng.integers(0, FILLERS, length)
    starts = places + np.arange(facts)
    text[starts], text[starts + 1] = keys, values
    return text.astype(np.int32), np.stack([keys, values], axis=1)


def make_batch(
    rng: np.random.Generator, stage: Stage, size: int, asked: int
) -> tuple[mx.array, mx.array, mx.array]:
    """Texts followed by questions and answers; the answers' places and values."""
    rows, answers = [], []
    for _ in range(size):
        text, facts = make_text(rng, stage.facts, stage.length)
        chosen = facts[rng.integers(0, len(facts), asked)]
        questions = [np.array([ASK, key, value]) for key, value in chosen]
        rows.append(np.concatenate([text, *questions]))
        answers.append(chosen[:, 1])
    places = stage.length + 3 * np.arange(asked) + 1
    return mx.array(np.array(rows)), mx.array(places), mx.array(np.array(answers))


def train(args: argparse.Namespace) -> tuple[Any, list[dict[str, Any]]]:
    """The recall model, and how its training went."""
    keep_freed_memory()
    mx.random.seed(args.seed)
    rng = np.random.default_rng(args.seed)
    model = llama.Model(llama.ModelArgs.from_dict(CONFIG))
    optimizer = optim.AdamW(args.learning_rate, betas=[0.9, 0.98], weight_decay=0.01)

    def loss(model: Any, batch: Any) -> tuple[mx.array, mx.array]:
        inputs, places, answers = batch
        hidden = model.model(inputs)[:, places]  # logits of the answers' places only
        logits = model.model.embed_tokens.as_linear(hidden)
        right = (mx.argmax(logits, axis=-1) == answers).mean()
        return nn.losses.cross_entropy(logits, answers).mean(), right

    step = nn.value_and_grad(model, loss)
    log, began, accuracy = [], time.perf_counter(), 0.0
    for stage in STAGES:
        accuracy, asked = 0.0, QUESTIONS
        for count in range(args.most_steps):
            size = max(8, args.tokens // (stage.length + 3 * asked))
            (value, right), gradients = step(model, make_batch(rng, stage, size, asked))
            gradients, _ = optim.clip_grad_norm(gradients, 1.0)
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state, value, right)
            accuracy += 0.05 * (float(right) - accuracy)
            if count % 100 == 0:
                seconds = time.perf_counter() - began
                print(
                    f"{seconds:6.0f} s, {stage.facts} facts, step {count}: "
                    f"loss {float(value):.3f}, right {accuracy:.3f}",
                    flush=True,
                )
            if accuracy >= stage.accuracy or time.perf_counter() - began > args.most_seconds:
                break
        log.append({**asdict(stage), "steps": count + 1, "reached": accuracy})
    model.eval()
    return model, log


# Asking


def view_of(capture: Capture, text: np.ndarray, args: argparse.Namespace, key: Any) -> MemoryView:
    """A text's memories."""
    parts: list[list[tuple[mx.array, mx.array]]] = [[] for _ in range(capture.num_layers)]
    for window in windows(len(text), args.window, args.stride):
        for _, kept in capture.steps(text, window, lambda: MAX_WIDTH):
            for layer, pair in enumerate(kept):
                parts[layer].append(pair)
    view = MemoryView((key,), "zero", (_Document(len(text)),))  # type: ignore[arg-type]
    for layer, pairs in enumerate(parts):
        view.layers.append(build_layer(pairs, layer, "zero", capture.rotate))
    return view


class _Document:
    def __init__(self, size: int) -> None:
        self.num_memories = size


def right_answers(
    model: Any, facts: np.ndarray, before: np.ndarray, request: MemoryRequest | None
) -> float:
    """The share of facts that are known, each asked for in a row of its own."""
    cache = BatchedCache(model)
    row = cache.join()
    if request is not None:
        row.memory, row.shift = request, request.shift
    for at in range(0, len(before), MAX_WIDTH):
        part = before[at : at + MAX_WIDTH]
        cache.begin(0, 1, len(part), [len(part)])
        model(mx.array(part)[None], cache=cache.layers)
        cache.commit()
        mx.eval(cache.arrays)
    for _ in range(len(facts) - 1):
        cache.fork(row)
    questions = np.stack([np.full(len(facts), ASK), facts[:, 0]], axis=1).astype(np.int32)
    cache.begin(0, len(facts), 2, [2] * len(facts))
    logits = model(mx.array(questions), cache=cache.layers)[:, -1]
    cache.commit()
    return float((mx.argmax(logits, axis=-1) == mx.array(facts[:, 1])).mean())


def evaluate(model: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Accuracy by length, of every way to be told the facts."""
    install_attention(model)
    capture, nothing = Capture(model), np.zeros(0, dtype=np.int32)
    rng = np.random.default_rng(args.seed + 1)
    rows = []
    for length in args.lengths:
        scores: dict[str, list[float]] = {}

        def note(name: str, score: float, scores: dict[str, list[float]] = scores) -> None:
            scores.setdefault(name, []).append(score)

        other: MemoryView | None = None
        for trial in range(max(1, min(args.trials, args.most_tokens // length))):
            text, facts = make_text(rng, FACTS, length)
            view = view_of(capture, text, args, (length, trial))
            note("none", right_answers(model, facts, nothing, None))
            if length <= args.longest_context:
                note("in context", right_answers(model, facts, text, None))
            for k in (1, 4, 8):
                request = MemoryRequest(view, topk=k)
                note(f"memory k={k}", right_answers(model, facts, nothing, request))
            permuted = facts.copy()
            permuted[:, 1] = np.roll(facts[:, 1], 1)
            note("values permuted", right_answers(model, permuted, nothing, MemoryRequest(view, 8)))
            if other is None:
                strange, _ = make_text(rng, FACTS, length)
                other = view_of(capture, strange, args, (length, "other"))
            note("another's memory", right_answers(model, facts, nothing, MemoryRequest(other, 8)))
        row = {"tokens": length, "trials": len(scores["none"])}
        rows.append({**row, **{name: float(np.mean(s)) for name, s in scores.items()}})
        shown = "  ".join(f"{name} {np.mean(s):.3f}" for name, s in scores.items())
        print(f"{length:7d} tokens, {row['trials']} texts: {shown}", flush=True)
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy over length, as a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    names = [name for name in rows[0] if name not in ("tokens", "trials")]
    for name in names:
        points = [(row["tokens"], row[name]) for row in rows if name in row]
        control = name in ("none", "values permuted", "another's memory")
        axes.plot(*zip(*points, strict=True), "o--" if control else "o-", label=name)
    axes.set(xscale="log", xlabel="tokens of text", ylabel="facts recalled", ylim=(0, 1.05))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[120, 1024, 16384, 100000])
    parser.add_argument("--trials", type=int, default=16, help="texts of each length")
    parser.add_argument("--most-tokens", type=int, default=400000, help="of one length's texts")
    parser.add_argument("--longest-context", type=int, default=1024)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--stride", type=int, default=256)
    parser.add_argument("--weights", type=Path, help="read them, or write them after training")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--tokens", type=int, default=4096, help="of a training step")
    parser.add_argument("--most-steps", type=int, default=6000, help="of one stage")
    parser.add_argument("--most-seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    log: list[dict[str, Any]] = []
    if args.weights is not None and args.weights.exists():
        model = llama.Model(llama.ModelArgs.from_dict(CONFIG))
        model.load_weights(str(args.weights))
        model.eval()
    else:
        model, log = train(args)
        if args.weights is not None:
            model.save_weights(str(args.weights))
    weights: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    count = sum(weight.size for weight in weights.values())
    rows = evaluate(model, args)
    result = {
        "parameters": count,
        "facts": FACTS,
        "window": args.window,
        "stride": args.stride,
        "training": log,
        "rows": rows,
    }
    if args.output is not None:
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    if args.plot is not None:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
