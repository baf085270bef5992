"""Puts an engine's parts together around a loaded model. On the engine's thread."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_parallm.cache.prefixes.page_spill import model_fingerprint
from mlx_parallm.cache.prefixes.prefix_contract import PAGE_SIZE
from mlx_parallm.cache.prefixes.prefix_store import PrefixStore
from mlx_parallm.engine.adapters.adapter_pool import AdapterPool
from mlx_parallm.engine.config import EngineConfig
from mlx_parallm.engine.forward.picture_encoder import PictureEncoder
from mlx_parallm.engine.forward.warm_up import warm_up
from mlx_parallm.engine.guard.memory_guard import MemoryGuard
from mlx_parallm.engine.guessing.draft_model import ModelDrafter
from mlx_parallm.engine.guessing.drafter import Drafter
from mlx_parallm.engine.guessing.ngram import NgramDrafter
from mlx_parallm.engine.model_runner import ModelRunner
from mlx_parallm.engine.networks.network_forwards import NetworkForwards
from mlx_parallm.engine.pacing.token_budget import TokenBudget
from mlx_parallm.engine.plan import SchedulerConfig
from mlx_parallm.engine.ranks.ranks import Ranks
from mlx_parallm.engine.scheduler import ContinuousBatchScheduler
from mlx_parallm.errors import ModelLoadError
from mlx_parallm.memory.fingerprint import fingerprint_of
from mlx_parallm.models.adapting.stages import held
from mlx_parallm.models.device_memory import (
    available_kv_bytes,
    total_memory,
    use_wired_memory,
)
from mlx_parallm.models.limits import MAX_WIDTH
from mlx_parallm.models.loader import LoadedModel, check_same_tokenizer
from mlx_parallm.models.lora.slots import AdapterSlots

log = logging.getLogger(__name__)
LoadDraft = Callable[[], LoadedModel]
_NO_LIMIT = 1 << 40
_FEATURES_SHARE = 16  # of the memory for K and V, what pictures' features may take besides
# Prompt tokens of a step: beside decoding rows before anything was measured, beside them at
# most, and where nothing decodes. Smaller on a CPU, where a long step stalls rows sooner.
_CPU_TOKENS = (64, 512, 512)
_GPU_TOKENS = (512, 4096, 4096)


def assemble(
    loaded: LoadedModel, config: EngineConfig, load_draft: LoadDraft | None, ranks: Ranks
) -> tuple[ModelRunner, ContinuousBatchScheduler, MemoryGuard]:
    """A runner, a scheduler and a guard of its memory for a model.

    What depends on a machine's memory is the least of all ranks'.

    Raises:
        ModelLoadError: the draft model does not fit.
    """
    ranks.compare("models", loaded.config)
    if ranks.size > 1 and any(loaded.folder.glob("*.safetensors")):
        ranks.compare("weights of this model", fingerprint_of(loaded))
    use_wired_memory()
    runner = ModelRunner(
        loaded.model, loaded.vocab_size, loaded.eos_token_ids, loaded.vision, ranks
    )
    if not ranks.in_stages:  # there the rank that samples tells the others what it has read
        runner.sampler.share = ranks.share
    warm_up(runner)
    per_token = -ranks.agree(-runner.cache.bytes_per_token)
    limit = config.memory_limit
    if limit is None and ranks.here > 1:
        limit = total_memory() // ranks.here
    memory = ranks.agree(
        config.kv_cache_memory
        or available_kv_bytes(loaded.nbytes, config.memory_utilization, limit)
    )
    prefixes = _prefixes(loaded, config, runner, memory, ranks)
    runner.reset()
    guesses = _speculate(loaded, config, load_draft, runner, ranks)
    scheduler = ContinuousBatchScheduler(
        SchedulerConfig(
            max_batch_size=config.max_batch_size,
            **_widths(loaded, config, guesses, ranks.stages),
            packs=runner.packs,
            kv_tokens=ranks.agree(memory // per_token if per_token else _NO_LIMIT),
            lookahead=guesses,
            aligned=prefixes is not None and prefixes.has_state,
            shares_prefixes=prefixes is not None,
        ),
        prefixes.tree if prefixes is not None else None,
    )
    scheduler.turns.current = runner.weights.current
    scheduler.turns.micro_batches = ranks.stages
    runner.networks = NetworkForwards(loaded.predictors, runner.measurements)
    runner.measurements.takers["network"] = scheduler.networks.measured
    if prefixes is not None and prefixes.disk is not None:
        scheduler.restore = prefixes.disk.restore
    if not loaded.is_encoder:
        runner.adapters = AdapterPool(
            AdapterSlots(loaded.model, runner.body.routing, config.max_loras), runner.weights
        )
        scheduler.admit_adapter = runner.adapters.admit
        first, most, idle = _tokens()
        scheduler.budget = TokenBudget(
            runner.curve, first=first, most=most, idle=idle, max_gap=config.max_gap
        )
        scheduler.networks.spare = scheduler.budget.spare
    if loaded.vision is not None and isinstance(scheduler.budget, TokenBudget):
        # Ranks compute whole pictures: how far they get in some time is not the same for all.
        spare = scheduler.budget.spare if ranks.size == 1 else lambda decoding: None
        runner.encoder = PictureEncoder(loaded.vision.tower, spare, memory // _FEATURES_SHARE)
        scheduler.look = runner.encoder.look
    limit = ranks.agree(min(limit or total_memory(), total_memory()))
    return runner, scheduler, MemoryGuard(limit, scheduler, prefixes, per_token)


def _prefixes(
    loaded: LoadedModel, config: EngineConfig, runner: ModelRunner, kv_memory: int, ranks: Ranks
) -> PrefixStore | None:
    """Set the prefix cache up; needs caches that have computed a token (see warm_up.py)."""
    memory = config.prefix_cache_memory
    if memory is None:
        memory = kv_memory // 4
    if memory <= 0 or loaded.is_encoder:
        return None
    prefixes = runner.prefixes = PrefixStore(runner.cache, memory, ranks.agree)
    if config.prefix_cache_dir is not None:
        fingerprint = model_fingerprint(loaded.config, held(loaded.model).items(), PAGE_SIZE)
        folder = config.prefix_cache_dir
        if ranks.size > 1:  # each has other heads, or other layers
            folder /= f"rank-{ranks.rank}-of-{ranks.size}"
        prefixes.keep_on_disk(folder, fingerprint, config.prefix_cache_disk // ranks.here)
    return prefixes


def _speculate(
    loaded: LoadedModel,
    config: EngineConfig,
    load_draft: LoadDraft | None,
    runner: ModelRunner,
    ranks: Ranks,
) -> int:
    """Set speculation up; returns the most tokens to guess, 0 where it is off."""
    if config.speculative is None:
        return 0
    if runner.cache.has_state:
        log.warning("speculation is off: this model's recurrent state cannot be taken back")
        return 0
    drafter: Drafter = NgramDrafter()
    if config.speculative == "draft":
        if load_draft is None:
            raise ModelLoadError("speculation with a draft model needs a draft model")
        draft = load_draft()
        check_same_tokenizer(loaded, draft)
        drafter = ModelDrafter(
            draft.model, min(draft.vocab_size, loaded.vocab_size), share=ranks.share
        )
        if any(cache.has_state for cache in drafter.caches):
            raise ModelLoadError(f"{draft.path}: a recurrent model cannot be the draft")
    runner.speculate(drafter, config.num_draft_tokens)
    return config.num_draft_tokens


def _widths(loaded: LoadedModel, config: EngineConfig, guesses: int, stages: int) -> dict[str, Any]:
    """How many prompt tokens a step computes; encoders compute whole prompts.

    Where ranks compute one after the other, the last one waits for a prompt's first part: parts are
    smaller there.
    """
    if loaded.is_encoder:
        whole = _NO_LIMIT
        return {"prefill_chunk": whole, "idle_prefill_tokens": whole, "max_width": MAX_WIDTH}
    _, most, idle = _tokens()
    # A chunk's last token and the guesses behind it are computed with it.
    return {
        "prefill_chunk": config.prefill_chunk or most,
        "idle_prefill_tokens": idle if stages == 1 else idle // (2 * stages),
        "max_width": MAX_WIDTH - 1 - max(guesses, config.num_draft_tokens),
    }


def _tokens() -> tuple[int, int, int]:
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    return _CPU_TOKENS if on_cpu else _GPU_TOKENS
