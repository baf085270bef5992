"""One model through all checks: first mlx_lm alone, then the engine."""

from __future__ import annotations

import gc
import platform
import resource
import sys
from importlib.metadata import version
from typing import Any

import mlx.core as mx

from mlx_parallm import __version__
from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.loader import LoadedModel, load_model
from mlx_parallm.tools.checks.answers import alone, score_alone
from mlx_parallm.tools.checks.numbers import Reference, Size, number_findings
from mlx_parallm.tools.checks.report import Finding, Report
from mlx_parallm.tools.checks.text import text_findings
from mlx_parallm.tools.checks.texts import PROMPTS, PROSE


def check_model(path: str, size: Size, dtype: str = "auto") -> Report:
    """Look at one model; the machine's memory holds it once at a time.

    Raises:
        ModelLoadError: it does not load, or is no language model.
    """
    reference = _reference(path, size, dtype)
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    # Nothing is remembered from one run to the next.
    config = EngineConfig(max_batch_size=max(size.batches), prefix_cache_memory=0)
    engine = Engine(lambda: load_model(path, dtype=dtype), config)
    engine.start()
    try:
        engine.wait_ready()
        assert engine.loaded is not None
        findings = [*text_findings(engine.loaded), *number_findings(engine, reference, size)]
        findings.append(_memory(engine.loaded))
        return Report(_describe(path, engine.loaded), _versions(), findings)
    finally:
        engine.stop()


def _reference(path: str, size: Size, dtype: str) -> Reference:
    loaded = load_model(path, dtype=dtype)
    if loaded.is_encoder or loaded.head is not None:
        raise ModelLoadError(f"{path} is not a language model: there are no next tokens to check")
    encode = loaded.tokenizer.encode
    prompts = [encode(prompt) for prompt in PROMPTS[: size.prompts]]
    text = encode(PROSE)[: loaded.max_model_len - 1]
    ends = loaded.eos_token_ids
    answers = [alone(loaded.model, prompt, size.tokens, ends) for prompt in prompts]
    return Reference(prompts, answers, text, score_alone(loaded.model, text))


def _memory(loaded: LoadedModel) -> Finding:
    peak = mx.get_peak_memory()
    unit = 1 if sys.platform == "darwin" else 1024
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    text = (
        f"weights {loaded.nbytes / 1e6:.0f} MB, MLX at most {peak / 1e6:.0f} MB, "
        f"process at most {process / 1e6:.0f} MB"
    )
    values = {"weights": loaded.nbytes, "mlx_peak": peak, "process_peak": process}
    return Finding("memory", text, None, values)


def _describe(path: str, loaded: LoadedModel) -> dict[str, Any]:
    return {
        "model": path,
        "type": loaded.config["model_type"],
        "parameters": loaded.num_parameters,
        "dtype": loaded.dtype,
        "context": loaded.max_model_len,
    }


def _versions() -> dict[str, str]:
    device = str(mx.default_device()) + f" on {platform.system()} {platform.machine()}"
    packages = {name: version(name) for name in ("mlx", "mlx-lm")}
    return {"mlx_parallm": __version__, **packages, "device": device}
