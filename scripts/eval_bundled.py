#!/usr/bin/env python3
"""Measure the bundled model through the server, greedily, on prompts that training never had.

    python scripts/eval_bundled.py                      # starts the server itself
    python scripts/eval_bundled.py --url http://127.0.0.1:8000 --draft-url http://127.0.0.1:8001
    python scripts/eval_bundled.py --short --json figures.json

Prints the table of the model card as Markdown. `--short` asks fewer prompts, for CI.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import json
import random
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from bundled.checks import GROUPS, Answer, Check, chats, stories
from bundled.client import Client, serve
from bundled.constrained_checks import constrained_checks
from bundled.knowledge import bare, multiple_choice
from decisions_eval.asking import judged_all
from decisions_eval.tasks import counted, stated_truth, stated_value
from tqdm import tqdm
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "mlx_parallm/models/bundled"
_MAX_TOKENS = 200
_AT_ONCE = 32
# What a thought may have; the longest that is taught has 31.
_FEW_TOKENS = 40

Scores = dict[str, list[bool]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--url", help="a running server with the model; default: start one")
    parser.add_argument("--draft-url", help="a running server with the draft; default: start one")
    parser.add_argument("--short", action="store_true", help="20 prompts of each kind")
    parser.add_argument("--count", type=int, default=200, help="prompts of each kind")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument(
        "--vision", action="store_true", help="the model that sees, on held-out pictures"
    )
    parser.add_argument("--wrong", action="store_true", help="show the answers that were wrong")
    return parser.parse_args()


def ask(client: Client, checks: list[Check], label: str) -> list[Answer]:
    """The answers, in order; up to 32 requests are on their way at once."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = pool.map(
            lambda c: client.chat(c.messages, c.tools, _MAX_TOKENS, **c.options), checks
        )
        return list(tqdm(answers, total=len(checks), desc=label, dynamic_ncols=True))


def score_answers(checks: list[Check], answers: list[Answer], *, show_wrong: bool) -> Scores:
    """Which answers are right, and whether those think that are asked to, and no others."""
    scores: Scores = defaultdict(list)
    for check, answer in zip(checks, answers, strict=True):
        thinks = check.group == "thinking"
        right = check.judge(answer) and (bool(answer.thought) or not thinks)
        scores[check.group].append(right)
        if thinks:
            scores["short_thought"].append(1 <= answer.thought_tokens <= _FEW_TOKENS)
        else:
            scores["no_thought"].append(not answer.thought and not answer.thought_tokens)
        if show_wrong and not right:
            asked = check.messages[-1]["content"][-80:]
            said = f"{answer.thought!r} {answer.content!r} {answer.calls}"
            tqdm.write(f"{check.group}: {asked!r} -> {said}")
    return scores


def ended(answers: list[Answer]) -> list[bool]:
    """Which of them end by themselves."""
    return [answer.finish_reason in ("stop", "tool_calls") for answer in answers]


def score_decisions(client: Client, count: int) -> Scores:
    """Typed questions that are answered by a label."""
    kinds = {"letter": stated_value, "yes_no": stated_truth, "digit": counted}
    return {
        name: [one.right for one in judged_all(client, make(random.Random(name), count))]
        for name, make in kinds.items()
    }


def score_choices(client: Client, tokenizer: Any, limit: int) -> list[bool]:
    """Whether the right one of four answers has the highest log-likelihood."""

    def is_right(item: dict[str, Any]) -> bool:
        start = tokenizer.encode(bare(item["question"]), add_special_tokens=False)
        sums = []
        for choice in item["choices"]:
            ids = start + tokenizer.encode(f" {choice}", add_special_tokens=False)
            sums.append(sum(client.prompt_logprobs(ids)["token_logprobs"][len(start) :]))
        return bool(sums.index(max(sums)) == item["gold"])

    items: list[dict[str, Any]] = multiple_choice()[:limit]
    with ThreadPoolExecutor(_AT_ONCE // 4) as pool:
        return list(tqdm(pool.map(is_right, items), total=len(items), desc="choices"))


def score_agreement(
    draft: Client, tokenizer: Any, checks: list[Check], answers: list[Answer]
) -> list[bool]:
    """For every token of the target's answers: whether the draft, after the same tokens, would
    have chosen it too."""

    def agreed(pair: tuple[Check, Answer]) -> list[bool]:
        check, answer = pair
        start, ids = _answer_ids(tokenizer, check, answer)
        logprobs = draft.prompt_logprobs(start + ids)
        chosen = logprobs["token_logprobs"][len(start) :]
        best = [max(top.values()) for top in logprobs["top_logprobs"][len(start) :]]
        return [own >= top - 1e-6 for own, top in zip(chosen, best, strict=True)]

    pairs = list(zip(checks, answers, strict=True))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = tqdm(pool.map(agreed, pairs), total=len(pairs), desc="agreement")
        return [token for tokens in found for token in tokens]


def _answer_ids(tokenizer: Any, check: Check, answer: Answer) -> tuple[list[int], list[int]]:
    """(token ids of the prompt, token ids of the answer with its end-of-turn token)."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.content}
    if answer.calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": name, "arguments": given}}
            for name, given in answer.calls
        ]
    options = {"tools": check.tools or None, "tokenize": False}
    start = tokenizer.apply_chat_template(check.messages, add_generation_prompt=True, **options)
    full = tokenizer.apply_chat_template([*check.messages, message], **options)
    rest = full[len(start) :].removesuffix("\n")
    if answer.finish_reason == "length":
        rest = rest.removesuffix(tokenizer.eos_token)
    return (
        tokenizer.encode(start, add_special_tokens=False),
        tokenizer.encode(rest, add_special_tokens=False),
    )


def table(scores: Scores) -> str:
    lines = ["| task | prompts | goal | reached |", "|---|---|---|---|"]
    for group in GROUPS:
        found = scores[group.name]
        unit = " tokens" if group.name == "agreement" else ""
        share = sum(found) / len(found)
        verdict = "" if share >= group.goal else " (missed)"
        lines.append(
            f"| {group.title} | {len(found):,}{unit} | {group.goal:.0%} | {share:.1%}{verdict} |"
        )
    return "\n".join(lines)


def look(options: argparse.Namespace, count: int) -> None:
    """Print what the model that sees makes of pictures."""
    # It draws with Pillow, which comes with the extra for pictures.
    from bundled_vision.evaluation import evaluate

    seeing = options.model if options.model != BUNDLED else BUNDLED / "vision"
    with ExitStack() as stack:
        client = Client(options.url or stack.enter_context(serve(seeing)))
        print(evaluate(client, count, show_wrong=options.wrong))


def main() -> None:
    options = arguments()
    count = 20 if options.short else options.count
    if options.vision:
        look(options, count)
        return
    tokenizer = AutoTokenizer.from_pretrained(str(options.model))
    checks = chats(count)
    with ExitStack() as stack:
        client = Client(options.url or stack.enter_context(serve(options.model)))
        answers = ask(client, checks, "chats")
        more = constrained_checks(count)
        scores = score_answers(
            [*checks, *more],
            [*answers, *ask(client, more, "constrained")],
            show_wrong=options.wrong,
        )
        scores["end"] = ended(answers)
        scores |= score_decisions(client, count)
        scores["choice"] = score_choices(client, tokenizer, count)
        told = [client.chat(prompt, [], _MAX_TOKENS).content for prompt in stories(5)]
    with ExitStack() as stack:
        draft = Client(options.draft_url or stack.enter_context(serve(options.model / "draft")))
        scores["agreement"] = score_agreement(draft, tokenizer, checks, answers)
    print(table(scores))
    print("\nStories:\n\n" + "\n".join(f"- {text}" for text in told))
    if options.json:
        figures = {
            group.name: {
                "right": sum(scores[group.name]),
                "asked": len(scores[group.name]),
                "goal": group.goal,
            }
            for group in GROUPS
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
