#!/usr/bin/env python3
"""Does a model use its memories? Facts that are in no context, asked for in a chat.

    python scripts/eval_extended_mind.py --json recall.json --plot recall.png   # 2 minutes
    python scripts/eval_extended_mind.py --quick
    python scripts/eval_extended_mind.py --sizes 4096 --texts 2 --each-layer

Up to 32 sentences like "The code of Mira is falcon." are hidden in texts of filler of growing
length. Each is asked for in a conversation of its own, and an answer is right if it is that
sentence. The columns of the table:

none             without the text
in context       the text stands before the question, as far as the model's context goes
k = 1, 4, 8      the text is memory, each head looks at the k most similar tokens
V shuffled       k = 8, but each memory has the values of another token
other text       k = 8, but the memory is of a text with other facts
wrong facts      k = 8, scored against the value of the text's next fact

The last three, and the first, have to be near 0. The facts of a text share one relation, as they
do in the bundled model's training: it cannot tell relations apart.

The defaults are what works best for the bundled model; the layers that use memories are those
that the model's config.json names. The local offset keeps the question's first tokens apart from
the memories, which all are at position 0; without it a larger k recalls less. Windows far longer
than the texts of the training (512 tokens) make memories that nothing finds.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from extended_mind.asking import Asker, shuffled
from extended_mind.texts import Fact, Text, make_facts, make_text, most_facts
from tqdm import tqdm

from mlx_parallm.engine.model_runner import ModelRunner
from mlx_parallm.memory.request import MemoryRequest
from mlx_parallm.memory.view import MemoryView
from mlx_parallm.models.loader import load_model

KS = (1, 4, 8)
CONTROLS = ("none", "V shuffled", "other text", "wrong facts")
COLUMNS = ("none", "in context", *(f"k = {k}" for k in KS), *CONTROLS[1:])
_QUESTION = 64  # tokens of a question, its answer and the template around them, at most

Right = dict[str, list[bool]]


class Evaluation:
    """Texts of one size after the other, and which answers about them are right.

    Args:
        context: tokens that the model can read at once.
    """

    def __init__(self, asker: Asker, args: argparse.Namespace, context: int) -> None:
        self.asker, self.args, self.context = asker, args, context
        self._rng = random.Random(args.seed)
        self._views = 0

    def row(self, size: int) -> dict[str, Any]:
        """Accuracies of one size."""
        began = time.perf_counter()
        count = min(self.args.facts, most_facts(size, self.asker.count))
        right: Right = {}
        texts = max(1, min(self.args.texts, self.args.most_tokens // size))
        for _ in tqdm(range(texts), desc=f"{size:,} tokens", dynamic_ncols=True):
            text = self._text(size, make_facts(self._rng, count))
            for name, found in self._about(text, size).items():
                right.setdefault(name, []).extend(found)
        accuracies = {name: sum(found) / len(found) for name, found in right.items()}
        seconds = round(time.perf_counter() - began, 1)
        return {"tokens": size, "questions": texts * count, **accuracies, "seconds": seconds}

    def _about(self, text: Text, size: int) -> Right:
        """Right or not, for every way to be told the text's facts."""
        facts = text.facts
        right = {"none": self._right(facts, self._answers(facts))}
        if size + _QUESTION <= self.context:
            right["in context"] = self._right(facts, self._answers(facts, before=text.content))
        view = self._remember(text)
        for k in KS:
            answers = self._answers(facts, view, k)
            right[f"k = {k}"] = self._right(facts, answers)
        right["wrong facts"] = self._right([*facts[1:], facts[0]], answers, facts)
        mixed = shuffled(view, self._views)
        right["V shuffled"] = self._right(facts, self._answers(facts, mixed, KS[-1]))
        del view, mixed  # 100,000 memories are large
        other = self._text(size, make_facts(self._rng, len(facts), facts[0].relation))
        right["other text"] = self._right(
            facts, self._answers(facts, self._remember(other), KS[-1])
        )
        return right

    def _text(self, size: int, facts: list[Fact]) -> Text:
        return make_text(self._rng, facts, size, self.asker.count)

    def _remember(self, text: Text) -> MemoryView:
        self._views += 1
        args = self.args
        return self.asker.remember(
            text.content,
            self._views,
            window=args.window,
            stride=args.stride,
            position=args.position,
        )

    def _answers(
        self, facts: list[Fact], view: MemoryView | None = None, k: int = 0, before: str = ""
    ) -> list[str]:
        args, request = self.args, None
        if view is not None:
            layers = frozenset(args.layers) if args.layers else None
            request = MemoryRequest(view, k, args.sim_threshold, layers, args.local_offset)
        return self.asker.answers([known.question for known in facts], before, request)

    @staticmethod
    def _right(
        values: list[Fact], answers: list[str], asked: list[Fact] | None = None
    ) -> list[bool]:
        """Whether each answer is the sentence of the fact `asked`, with the value of `values`."""
        asked = values if asked is None else asked
        pairs = zip(asked, values, strict=True)
        expected = [Fact(own.relation, own.name, other.value).sentence for own, other in pairs]
        return [given.strip() == right for given, right in zip(answers, expected, strict=True)]


def table(rows: list[dict[str, Any]]) -> str:
    """The accuracies as Markdown."""
    lines = [
        f"| tokens | questions | {' | '.join(COLUMNS)} |",
        "|---:" * (len(COLUMNS) + 2) + "|",
    ]
    for row in rows:
        shown = [f"{row[name]:.3f}" if name in row else "-" for name in COLUMNS]
        lines.append(f"| {row['tokens']:,} | {row['questions']} | {' | '.join(shown)} |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """The accuracies over the text's length, as a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for place, name in enumerate(COLUMNS):
        points = [(row["tokens"], row[name]) for row in rows if name in row]
        if not points:
            continue
        style = "o:" if name in CONTROLS else "o-"
        # Smaller and smaller, since many lie upon each other.
        size = 12 - place
        axes.plot(*zip(*points, strict=True), style, label=name, markersize=size, alpha=0.8)
    axes.set(xscale="log", xlabel="tokens of text", ylabel="facts recalled", ylim=(-0.03, 1.05))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled", help="one that knows the bundled chats")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[120, 480, 1024, 4096, 16384, 100000]
    )
    parser.add_argument("--facts", type=int, default=32, help="of a text, where so many fit")
    parser.add_argument("--texts", type=int, default=8, help="of each size")
    parser.add_argument("--most-tokens", type=int, default=200000, help="of one size's texts")
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--stride", type=int, default=64)
    parser.add_argument("--position", choices=("zero", "contiguous"), default="zero")
    parser.add_argument("--local-offset", type=int, default=64)
    parser.add_argument("--sim-threshold", type=float)
    parser.add_argument("--layers", type=int, nargs="*", help="that use memories; none named: all")
    parser.add_argument("--each-layer", action="store_true", help="a table for each layer alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one short text of each of two sizes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there, as a PNG")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.texts, args.facts = [120, 600], 1, 12
    return args


def main() -> None:
    args = arguments()
    loaded = load_model(args.model)
    ModelRunner(loaded.model, loaded.vocab_size)  # installs the attention that uses memories
    evaluation = Evaluation(Asker(loaded), args, loaded.max_model_len)
    if args.each_layer:
        for layer in range(len(loaded.model.layers)):
            args.layers = [layer]
            print(f"layer {layer}\n{table([evaluation.row(size) for size in args.sizes])}")
        return
    if args.layers is None:
        args.layers = loaded.memory_defaults.get("layers")
    rows = [evaluation.row(size) for size in args.sizes]
    print(table(rows))
    if args.json is not None:
        names = "model facts window stride position local_offset sim_threshold layers seed".split()
        settings = {name: getattr(args, name) for name in names}
        args.json.write_text(json.dumps({**settings, "rows": rows}, indent=1) + "\n")
    if args.plot is not None:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
