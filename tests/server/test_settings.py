"""Options: where they come from, and one clear line for a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_parallm.options.loading import load_settings
from mlx_parallm.options.values import parse_bytes
from mlx_parallm.settings import Settings, SettingsError


def test_defaults() -> None:
    settings = load_settings(["--model-path", "bundled"], {})
    assert settings == Settings()
    assert settings.model_path == "bundled"
    assert settings.model_names == ("bundled",)
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.max_batch_size == 32


@pytest.mark.parametrize("found", [None, "here"])
def test_without_a_model_the_bundled_one_that_can_see(
    monkeypatch: pytest.MonkeyPatch, found: str | None
) -> None:
    """Where the extra for pictures is installed, and no other weights are asked for."""
    monkeypatch.setattr("mlx_parallm.options.loading.find_spec", lambda name: found)
    settings = load_settings([], {})
    assert settings.model_path == ("bundled" if found is None else "bundled/vision")
    assert settings.model_names == ("bundled",)
    named = load_settings(["--served-model-name", "mine"], {})
    assert (named.model_path, named.model_names) == (settings.model_path, ("mine",))
    for typed in (
        ["--model-path", "bundled"],
        ["--adapter-path", "somewhere"],
        ["--quantize", "4bit"],
        ["--memory-dir", "somewhere"],
    ):
        assert load_settings(typed, {}).model_path == "bundled"


def test_arguments() -> None:
    settings = load_settings(
        [
            *("--model-path", "org/model", "--served-model-name", "a", "--served-model-name", "b"),
            *("--port", "0", "--kv-cache-memory", "512MiB", "--max-body-size=1KB"),
            *("--batch-timeout-ms", "0.5", "--request-timeout", "2", "--dtype", "Float16"),
            *("--api-key", "k", "--trust-remote-code", "--log-level", "DEBUG"),
        ],
        {},
    )
    assert settings.model_names == ("a", "b")
    assert settings.port == 0
    assert settings.kv_cache_memory == 512 * 1024**2
    assert settings.max_body_size == 1000
    assert settings.batch_timeout_ms == 0.5
    assert settings.request_timeout == 2.0
    assert settings.dtype == "float16"
    assert settings.trust_remote_code
    assert settings.log_level == "debug"


@pytest.mark.parametrize("name", ["config.toml", "config.json"])
def test_arguments_beat_the_environment_which_beats_the_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text(
        "port = 1\nmax-queue = 2\nmax_batch_size = 3\ntrust-remote-code = true\n"
        'batch-timeout-ms = 1.5\nserved-model-name = ["a", "b"]\n'
        if name.endswith("toml")
        else '{"port": 1, "max-queue": 2, "max_batch_size": 3, "trust-remote-code": true, '
        '"batch-timeout-ms": 1.5, "served-model-name": ["a", "b"]}'
    )
    environment = {"MLX_PARALLM_PORT": "10", "MLX_PARALLM_MAX_QUEUE": "20"}
    settings = load_settings(["--config", str(file), "--port", "100"], environment)
    assert (settings.port, settings.max_queue, settings.max_batch_size) == (100, 20, 3)
    assert settings.trust_remote_code
    assert settings.batch_timeout_ms == 1.5
    assert settings.model_names == ("a", "b")
    from_environment = load_settings([], {"MLX_PARALLM_CONFIG": str(file)})
    assert from_environment.port == 1


def test_lists_in_the_environment() -> None:
    environment = {"MLX_PARALLM_API_KEY": "a,b", "MLX_PARALLM_TRUST_REMOTE_CODE": "1"}
    settings = load_settings([], environment)
    assert settings.api_key == ("a", "b")
    assert settings.trust_remote_code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "x"], "--port"),
        (["--port", "65536"], "65535"),
        (["--port"], "--port"),
        (["--no-such"], "--no-such"),
        (["--max-batch"], "--max-batch"),
        (["one", "stray"], "stray"),
        (["--max-batch-size", "0"], "from 1 to"),
        (["--dtype", "int3"], "bfloat16"),
        (["--kv-cache-memory", "2 apples"], "512MiB"),
        (["--kv-cache-memory", "0"], "above 0"),
        (["--request-timeout", "nan"], "above 0"),
        (["--request-timeout", "inf"], "above 0"),
        (["--batch-timeout-ms", "-1"], "at least 0"),
        (["--model-path", ""], "--model-path"),
        (["--config", "/nowhere/x.toml"], "/nowhere/x.toml"),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(SettingsError) as error:
        load_settings(arguments, {})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = [1]", "port"),
        ("no-such = 1", "no_such"),
        ("port = ", "config.toml"),
        ("port = true", "port"),
        ("[port]\na = 1", "port"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=said):
        load_settings(["--config", str(file)], {})


def test_wrong_environment_is_named() -> None:
    with pytest.raises(SettingsError, match="MLX_PARALLM_PORT"):
        load_settings([], {"MLX_PARALLM_PORT": "eighty"})


def test_keys_are_not_shown() -> None:
    assert "secret" not in repr(Settings(api_key=("secret",)))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("2GB", 2 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("512mib", 2**29),
        ("3k", 3000),
        ("1T", 10**12),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1e999", "nan", "1 PB", "0.1", "1KK"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        parse_bytes(text)


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_information(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        load_settings([argument], {})
    assert end.value.code == 0
    shown = capsys.readouterr().out
    wanted: Any = {
        "--help": ("--kv-cache-memory", "--batch-timeout-ms", "MLX_PARALLM_"),
        "--version": ("mlx_parallm 0.", "mlx ", "mlx-lm ", "BLAS "),
    }
    assert all(part in shown for part in wanted[argument])
