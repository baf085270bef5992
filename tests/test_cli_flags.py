"""What people type who come from other servers: it works, or one line says what to type."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mlx_parallm.options.elsewhere import ALIASES, FLAGS
from mlx_parallm.options.loading import load_settings
from mlx_parallm.options.parser import GROUPS
from mlx_parallm.settings import Settings, SettingsError


@pytest.mark.parametrize(
    ("typed", "option", "value"),
    [
        ("org/model", "model_path", "org/model"),
        ("--port 1 org/model", "model_path", "org/model"),
        ("org/model --port 1", "port", 1),
        ("--model org/model", "model_path", "org/model"),
        ("-m ./folder", "model_path", "./folder"),
        ("-hf org/model", "model_path", "org/model"),
        ("--model_path org/model", "model_path", "org/model"),
        # vLLM
        ("--max-num-seqs 7", "max_batch_size", 7),
        ("--max_num_seqs=7", "max_batch_size", 7),
        ("--max-model-len 32k", "max_model_len", 32_000),
        ("--max-model-len 32K", "max_model_len", 32_768),
        ("--max-model-len auto", "max_model_len", None),
        ("--gpu-memory-utilization 0.9", "gpu_memory_utilization", 0.9),
        ("--served-model-name a --served-model-name b", "served_model_name", ("a", "b")),
        ("--no-enable-prefix-caching", "prefix_cache_memory", 0),
        ("--dtype half", "dtype", "float16"),
        ("--dtype float", "dtype", "float32"),
        ("--tensor-parallel-size 2", "tensor_parallel", 2),
        ("-tp=1", "max_batch_size", 32),
        ("--max-num-batched-tokens 2048", "prefill_chunk", 2048),
        ("--trust-remote-code", "trust_remote_code", True),
        ("--no-trust-remote-code", "trust_remote_code", False),
        ('--allowed-origins ["https://a.example"]', "cors_origin", ("https://a.example",)),
        ("--seed 3", "seed", 3),
        # llama.cpp
        ("-c 4096", "max_model_len", 4096),
        ("--ctx-size 0", "max_model_len", None),
        ("-np 3", "max_batch_size", 3),
        ("--parallel 3", "max_batch_size", 3),
        ("--temp 0.5", "temperature", 0.5),
        ("--top-k 40", "top_k", 40),
        ("--top-p 0.9", "top_p", 0.9),
        ("--min-p 0.05", "min_p", 0.05),
        ("--repeat-penalty 1.1", "repetition_penalty", 1.1),
        ("-n 99", "max_tokens", 99),
        ("--predict 99", "max_tokens", 99),
        ("-n -1", "max_tokens", None),
        ("-s -1", "seed", None),
        ("--host 0.0.0.0", "host", "0.0.0.0"),
        ("--alias name", "served_model_name", ("name",)),
        ("-md org/draft", "draft_model", "org/draft"),
        ("-cram 512", "prefix_cache_memory", 512 * 1024**2),
        ("-v", "log_level", "debug"),
        # mlx-lm
        ("--max-tokens 5", "max_tokens", 5),
        ('--chat-template-args {"a":1}', "chat_template_kwargs", {"a": 1}),
        ("--chat-template {{messages}}", "chat_template", "{{messages}}"),
        ("--log-level DEBUG", "log_level", "debug"),
        ("--prompt-cache-bytes 1GB", "prefix_cache_memory", 10**9),
        ("--decode-concurrency 4", "max_batch_size", 4),
        ("--num-draft-tokens 4", "num_draft_tokens", 4),
    ],
)
def test_what_works(typed: str, option: str, value: Any) -> None:
    settings = load_settings(typed.split(), {})
    assert getattr(settings, option) == value


@pytest.mark.parametrize(
    "typed",
    [
        "--enable-prefix-caching",
        "--enable-auto-tool-choice",
        "--tool-call-parser hermes",
        "--enable-chunked-prefill",
        "--enforce-eager",
        "-ngl 99",
        "--n-gpu-layers all",
        "-t 8",
        "--threads 8",
        "-fa",
        "-fa on",
        "--jinja",
        "-cb",
        "--mlock",
        "--metrics",
    ],
)
def test_what_is_not_needed_is_said(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    without = load_settings([], {})
    assert load_settings(typed.split(), {}) == without
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mlx_parallm_serve: note: {typed} is not needed: ")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--lora x", "adapters in GGUF are not read"),
        ("--expert-parallel-size 2", "type --tensor-parallel N"),
        ("--pipeline", "type --pipeline-parallel N"),
        ("--prompt-cache-size 10", "--prefix-cache-memory SIZE"),
        ("--quantization awq", "--quantize 4bit"),
        ("--speculative-config {}", "--speculative ngram"),
        ("--kv-cache-dtype fp8", "--dtype float16"),
        ("--timeout 5", "--request-timeout SECONDS"),
        ("-b 512", "--max-batch-size"),
        ("--revision main", "mlx_parallm pull ORG/NAME --revision REVISION"),
        ("--tokenizer x", "tokenizer in the model's folder"),
        ("--allowed-origins a,b", "--cors-origin ORIGIN"),
        ("-fa org/model", "expected on, off, auto"),
        ("--reasoning-parser qwen3", "stays in the content"),
        ("--override-generation-config {}", "--temperature"),
        ("--temp 3", "--temperature '3': expected a number from 0 to 2"),
        ("--top-p 2", "from 0 to 1"),
        ("--gpu-memory-utilization 0", "above 0 and up to 1"),
        ("--gpu-memory-utilization 0.5 --kv-cache-memory 1GB", "exclude each other"),
        ("--chat-template-args nonsense", "JSON object"),
        ("--max-model-len long", "8192 or 32k, or auto"),
        ("one two", "--served-model-name A --served-model-name B"),
        ("one --model two", "contradicts --model-path two"),
        ("--max-batch-size 4 -c 5 --max-model-len 6", "contradicts --max-model-len 6"),
        # misspelt
        ("--max-batchsize 4", "did you mean --max-batch-size?"),
        ("--max-batch 4", "did you mean --max-batch-size?"),
        ("--prot 1", "did you mean --port?"),
        ("--max-num-seq 4", "did you mean --max-num-seqs?"),
        ("--temperture=1", "did you mean --temperature?"),
        ("--enable-prefix-cache", "did you mean --enable-prefix-caching?"),
    ],
)
def test_what_does_not_work_says_what_to_type(typed: str, said: str) -> None:
    with pytest.raises(SettingsError) as error:
        load_settings(typed.split(), {})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unlike_flag_has_no_suggestion() -> None:
    with pytest.raises(SettingsError, match=r"^unknown option --frobnicate$"):
        load_settings(["--frobnicate"], {})


def test_every_flag_has_one_meaning() -> None:
    names = [name for aliases in ALIASES.values() for name in aliases]
    names += [name for flag in FLAGS for name in flag.names]
    names += ["--" + name.replace("_", "-") for name in Settings.__dataclass_fields__]
    assert len(names) == len(set(names))


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(["--help"], {})
    shown = capsys.readouterr().out
    titles = [line[:-1] for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles[:2] == ["the ten that matter", "model"]
    assert len(GROUPS["the ten that matter"]) == 10
    for name in Settings.__dataclass_fields__:
        assert f"  --{name.replace('_', '-')}" in shown
    for part in (
        "{4bit,8bit,mxfp4,mxfp8,nvfp4}",
        "examples:",
        "--max-num-seqs, --parallel",
        "16MiB",
    ):
        assert part in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_defaults_of_requests_in_the_environment_and_in_a_file(tmp_path: Any) -> None:
    file = tmp_path / "server.toml"
    file.write_text("temperature = 0.5\ntop-p = 1\nchat-template-kwargs = {think = false}\n")
    settings = load_settings(["--config", str(file)], {"MLX_PARALLM_TOP_K": "3"})
    assert settings.request_defaults == {"temperature": 0.5, "top_p": 1.0, "top_k": 3}
    assert settings.chat_template_kwargs == {"think": False}
    file.write_text("max-batchsize = 3\n")
    with pytest.raises(SettingsError, match="did you mean max_batch_size"):
        load_settings(["--config", str(file)], {})


def test_a_misspelt_variable_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    without = load_settings([], {})
    assert load_settings([], {"MLX_PARALLM_MAX_BATCHSIZE": "4"}) == without
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "mlx_parallm_serve: note: MLX_PARALLM_MAX_BATCHSIZE has no effect; "
        "did you mean MAX_BATCH_SIZE?"
    )
    load_settings([], {"MLX_PARALLM_BLAS": "off", "MLX_PARALLM_SERVE": "x", "OTHER": "y"})
    assert capsys.readouterr().err == ""


def test_the_page_about_options_has_every_flag() -> None:
    page = (Path(__file__).parents[1] / "docs" / "options.md").read_text()
    shown = set(re.findall(r"`(--?[a-z][a-z-]*)`", page))
    known = {name for names in ALIASES.values() for name in names}
    known |= {name for flag in FLAGS for name in flag.names}
    assert known - shown == set()
    own = {"--" + name.replace("_", "-") for name in Settings.__dataclass_fields__}
    assert shown - known - own - {"--config"} == set()
