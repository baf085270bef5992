"""The table of what the model sees."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from bundled.client import Client
from tqdm import tqdm

from .checks import GROUPS, Group, Shown, shown

_MAX_TOKENS = 24
_AT_ONCE = 16


def evaluate(client: Client, count: int, *, show_wrong: bool) -> str:
    """Ask about `count` held-out pictures of each kind; the figures as a table.

    Those with a goal are asked about empty pictures, too: what is right then was guessed.
    """
    lines = [
        "| held-out pictures | asked | goal | right | of empty pictures | by chance |",
        "|---|---|---|---|---|---|",
    ]
    for group in GROUPS:
        right = _share(client, shown(group, count), group.title, show_wrong=show_wrong)
        lines.append(_line(client, group, count, right))
    return "\n".join(lines)


def _line(client: Client, group: Group, count: int, right: float) -> str:
    if group.goal is None:
        return f"| {group.title} | {count} | | {right:.1%} | | |"
    empty = _share(client, shown(group, count, blank=True), "empty", show_wrong=False)
    verdict = "" if right >= group.goal else " (missed)"
    return (
        f"| {group.title} | {count} | {group.goal:.0%} | {right:.1%}{verdict} | {empty:.1%} "
        f"| {group.chance:.1%} |"
    )


def _share(client: Client, asked: list[Shown], label: str, *, show_wrong: bool) -> float:
    def is_right(one: Shown) -> bool:
        said = client.chat(one.messages, [], _MAX_TOKENS).content
        right = one.is_right(said)
        if show_wrong and not right:
            tqdm.write(f"{one.group.title}: {one.asked.text} {one.asked.answer!r} -> {said!r}")
        return right

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = tqdm(pool.map(is_right, asked), total=len(asked), desc=label, leave=False)
        return sum(found) / len(asked)
