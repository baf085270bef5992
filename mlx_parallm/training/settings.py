"""TrainSettings: everything that a run of training depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from mlx_parallm.errors import TrainingError

LossKind = Literal["grpo", "dr_grpo", "dapo"]
LOSS_KINDS: tuple[LossKind, ...] = get_args(LossKind)
Scaling = Literal["group", "batch", "none"]
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)


@dataclass(frozen=True)
class LoraSettings:
    """Which low-rank matrices are trained; the names are mlx-lm's.

    Attributes:
        rank: r; scale: what their product is multiplied by.
        num_layers: of the last so many blocks; -1 is all.
        keys: modules below a block, such as "self_attn.q_proj"; empty is every linear one.
        dora: train magnitudes too (DoRA, arXiv 2402.09353).
    """

    rank: int = 16
    scale: float = 2.0
    num_layers: int = -1
    keys: tuple[str, ...] = ()
    dora: bool = False


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        model: as mlx_parallm_serve takes it. data: a JSONL file; see dataset.py.
        output: the folder of the adapter, its checkpoints and logs.
        rewards: see rewards.py. reward_weights: one each; empty is 1 each.
        steps: each is rollouts, rewards and an update. prompts_per_step, group_size: answers
            to as many prompts, so many to each.
        max_tokens, temperature, stop: of the answers. No token is cut off (top_p, top_k), so
            that the policy that is trained is the one that was sampled.
        learning_rate, warmup_steps, weight_decay, max_grad_norm: of AdamW; the norm 0 is no limit.
        updates_per_step: passes over the same answers.
        clip, clip_high: the ratio of probabilities counts within 1 - clip and 1 + clip_high;
            None is the same as clip.
        kl: weight of the divergence from the base model; 0 does not compute it.
        loss: how tokens are averaged: "grpo" in each answer, then over answers; "dapo" over all
            tokens; "dr_grpo" by the longest possible answer.
        scale_rewards: advantages are divided by the deviation of their "group", of the "batch",
            or by nothing.
        micro_batch: answers of one forward and backward; gradients are added up over them.
        seed: the same seed and settings give the same run.
        save_every: steps between checkpoints. keep: how many checkpoints stay.
        resume: go on from the newest checkpoint in `output`.
    """

    data: Path
    output: Path
    rewards: tuple[str, ...]
    model: str = "bundled"
    dtype: str = "auto"
    reward_weights: tuple[float, ...] = ()
    lora: LoraSettings = field(default_factory=LoraSettings)
    steps: int = 100
    prompts_per_step: int = 8
    group_size: int = 8
    max_tokens: int = 128
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    updates_per_step: int = 1
    clip: float = 0.2
    clip_high: float | None = None
    kl: float = 0.0
    loss: LossKind = "grpo"
    scale_rewards: Scaling = "group"
    micro_batch: int = 8
    max_batch_size: int = 64
    seed: int = 0
    save_every: int = 20
    keep: int = 3
    resume: bool = False

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise TrainingError(f"{_flag(name)} must be at least {least}.", param=name)
        if not self.temperature > 0:
            raise TrainingError("--temperature must be above 0.", param="temperature")
        if not self.lora.rank > 0:
            raise TrainingError("--rank must be at least 1.", param="rank")
        if not self.rewards:
            raise TrainingError("--reward is needed, once or more.", param="reward")
        if self.reward_weights and len(self.reward_weights) != len(self.rewards):
            raise TrainingError(
                f"--reward-weights has {len(self.reward_weights)} numbers; "
                f"there are {len(self.rewards)} rewards.",
                param="reward_weights",
            )

    @property
    def clip_range(self) -> tuple[float, float]:
        """The least and the largest ratio that counts."""
        high = self.clip if self.clip_high is None else self.clip_high
        return 1 - self.clip, 1 + high


_AT_LEAST: dict[str, float] = {
    "steps": 1,
    "prompts_per_step": 1,
    "group_size": 2,
    "max_tokens": 1,
    "learning_rate": 0,
    "warmup_steps": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "updates_per_step": 1,
    "clip": 0,
    "kl": 0,
    "micro_batch": 1,
    "max_batch_size": 1,
    "seed": 0,
    "save_every": 1,
    "keep": 1,
}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
