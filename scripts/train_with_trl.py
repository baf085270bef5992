#!/usr/bin/env python3
"""GRPO with TRL on a CPU, all samples from a running server.

    ./scripts/serve
    scripts/train_with_trl.py --url http://127.0.0.1:8000

The task: "Tell me a story about a brave goat." The bundled model tells of a goat, and chooses
its mood by itself; the reward is 1 where the story begins with a brave goat. Each step saves
the adapter, loads it into the server under the same name, and has its samples from there.

Needs the extra `rl`: torch, PEFT and TRL. The server must see the same folders.
"""

from __future__ import annotations

import in_venv  # isort: skip  (starts this script again in .venv)

import argparse
import importlib.util
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

BUNDLED = in_venv.ROOT / "mlx_parallm" / "models" / "bundled"
MOODS = ("quiet", "kind", "brave", "clever", "young", "happy", "old", "small")
ANIMALS = ("frog", "goat", "fox", "hen", "lion", "dog", "cow", "sheep")
ASKED = "Tell me a story about a {mood} {animal}."
NEEDED = ("torch", "peft", "trl")
ENOUGH_STEPS = 5  # whose mean reward has to reach the goal

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Hero:
    """Who a story is asked for."""

    mood: str
    animal: str

    @property
    def messages(self) -> Messages:
        """The request."""
        return [{"role": "user", "content": ASKED.format(mood=self.mood, animal=self.animal)}]

    def reward(self, story: str) -> float:
        """1 where the story is about them."""
        return float(f" {self.mood} {self.animal} " in story)


def heroes(held_out: int, seed: int = 1) -> tuple[list[Hero], list[Hero]]:
    """Those to train with, and those that are only asked for at the end."""
    pairs = [Hero(*pair) for pair in itertools.product(MOODS, ANIMALS)]
    random.Random(seed).shuffle(pairs)
    return pairs[held_out:], pairs[:held_out]


class Policy:
    """An adapter on a server.

    Args:
        url: of the server.
        name: of the adapter; until the first load the base model answers.
    """

    def __init__(self, url: str, name: str, max_tokens: int) -> None:
        self._http = httpx.Client(base_url=url, timeout=120)
        self._name = name
        self._max_tokens = max_tokens
        self._loaded = False

    def load(self, folder: Path) -> None:
        """Let the server use an adapter that was saved, from the next sample on."""
        body = {"lora_name": self._name, "lora_path": str(folder), "load_inplace": True}
        self._http.post("/v1/load_lora_adapter", json=body).raise_for_status()
        self._loaded = True

    def samples(self, conversations: Sequence[Messages], n: int) -> list[dict[str, Any]]:
        """n samples of each at temperature 1, in order."""
        body = {
            "model": self._name if self._loaded else "",
            "messages": list(conversations),
            "n": n,
            "max_tokens": self._max_tokens,
            "priority": 1,  # behind people who use the server
            "stream": False,
        }
        answer = self._http.post("/v1/rl/rollout", json=body)
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["samples"]
        return found

    def score(self, asked: Sequence[Hero], n: int) -> float:
        """The mean reward of n samples of each."""
        found = self.samples([hero.messages for hero in asked], n)
        rewards: list[float] = [asked[s["prompt_index"]].reward(s["text"]) for s in found]
        return sum(rewards) / len(rewards)


class Rollouts:
    """What TRL calls for its samples; saves and loads the adapter where it has changed.

    Attributes:
        largest_gap: nats between a log-probability of the server and the trainer's own, of one
            sample a step.
        seconds: spent here.
    """

    def __init__(self, policy: Policy, folder: Path) -> None:
        self._policy = policy
        self._folder = folder
        self._step = -1
        self.largest_gap = 0.0
        self.seconds = 0.0

    def __call__(self, prompts: list[Messages], trainer: Any) -> dict[str, Any]:
        """Token ids and log-probabilities of one sample for each prompt."""
        began = time.perf_counter()
        if trainer.state.global_step != self._step:
            self._step = trainer.state.global_step
            folder = self._folder / str(self._step)
            trainer.model.save_pretrained(folder)
            self._policy.load(folder)
        groups = [(messages, len(list(same))) for messages, same in itertools.groupby(prompts)]
        (size,) = {count for _, count in groups}
        found = self._policy.samples([messages for messages, _ in groups], size)
        self.largest_gap = max(self.largest_gap, _gap(trainer.model, found[self._step % size]))
        self.seconds += time.perf_counter() - began
        return {
            "prompt_ids": [sample["prompt_token_ids"] for sample in found],
            "completion_ids": [sample["token_ids"] for sample in found],
            "logprobs": [sample["processed_logprobs"] for sample in found],
        }


def _gap(model: Any, sample: dict[str, Any]) -> float:
    """How far the server's log-probabilities are from the trainer's, in nats."""
    import torch

    prompt, tokens = sample["prompt_token_ids"], sample["token_ids"]
    training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    model.train(training)
    ours = torch.log_softmax(logits, -1).gather(-1, torch.tensor(tokens)[:, None])[:, 0]
    return float((ours - torch.tensor(sample["processed_logprobs"])).abs().max())


def train(policy: Policy, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train until the goal is reached or the time is over."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    asked, kept = heroes(options.held_out)
    before = policy.score(asked, 8), policy.score(kept, 8)
    rollouts = Rollouts(policy, folder)
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(BUNDLED),
        args=GRPOConfig(
            output_dir=str(folder / "trainer"),
            per_device_train_batch_size=options.prompts * options.group,
            num_generations=options.group,
            max_completion_length=options.max_tokens,
            max_steps=options.steps,
            learning_rate=options.learning_rate,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            seed=options.seed,
        ),
        train_dataset=Dataset.from_list([{"prompt": h.messages, **asdict(h)} for h in asked]),
        reward_funcs=_reward,
        rollout_func=rollouts,
        peft_config=LoraConfig(
            r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear"
        ),
        callbacks=[_stopper(options)],
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    last = folder / "last"
    trainer.model.save_pretrained(last)
    policy.load(last)
    return {
        "reward_before": before[0],
        "reward_after": policy.score(asked, 8),
        "held_out_before": before[1],
        "held_out_after": policy.score(kept, 8),
        "steps": trainer.state.global_step,
        "samples": trainer.state.global_step * options.prompts * options.group,
        "seconds": seconds,
        "seconds_in_rollouts": rollouts.seconds,
        "largest_gap_nats": rollouts.largest_gap,
        "rewards": [float(log["reward"]) for log in trainer.state.log_history if "reward" in log],
    }


def _reward(
    completions: list[Messages], mood: list[str], animal: list[str], **_: Any
) -> list[float]:
    stories = [completion[0]["content"] for completion in completions]
    asked = map(Hero, mood, animal)
    return [hero.reward(story) for hero, story in zip(asked, stories, strict=True)]


def _stopper(options: argparse.Namespace) -> Any:
    """Ends the training at the goal, or when the time is over; prints each step."""
    from transformers import TrainerCallback

    class Stopper(TrainerCallback):
        def __init__(self) -> None:
            self.rewards: list[float] = []
            self.until = time.perf_counter() + 60 * options.minutes

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            logs = kwargs["logs"]
            if "reward" not in logs:
                return
            self.rewards.append(float(logs["reward"]))
            print(f"step {state.global_step}: reward {self.rewards[-1]:.3f}", flush=True)
            last = self.rewards[-ENOUGH_STEPS:]
            reached = len(last) == ENOUGH_STEPS and sum(last) / ENOUGH_STEPS >= options.goal
            control.should_training_stop |= reached or time.perf_counter() > self.until

    return Stopper()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--name", default="storyteller", help="of the adapter on the server")
    parser.add_argument("--goal", type=float, default=0.9, help="stop at this mean reward")
    parser.add_argument("--minutes", type=float, default=9, help="at most")
    parser.add_argument("--steps", type=int, default=400, help="at most")
    parser.add_argument("--prompts", type=int, default=8, help="a step")
    parser.add_argument("--group", type=int, default=16, help="samples of each prompt")
    parser.add_argument("--max-tokens", type=int, default=12)
    parser.add_argument("--held-out", type=int, default=16, help="pairs that are not trained with")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args(arguments)


def main() -> int:
    """Train, and print what came of it."""
    options = parse()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{', '.join(missing)} not found: pip install -e '.[rl]'", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        policy = Policy(options.url, options.name, options.max_tokens)
        found = train(policy, Path(folder), options)
    shown = {name: value for name, value in found.items() if name != "rewards"}
    print(json.dumps(shown, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
