"""Fused kernels where there is no compiler, or a broken one."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_parallm.cpu import fusing


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    fusing.stop_fusing()
    monkeypatch.setenv("PATH", "/nowhere")
    assert not fusing.compile_kernels()
    assert not fusing.is_fusing()


def test_a_broken_compiler_switches_compilation_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: fusing.Fused) -> None:
        raise RuntimeError("cc1plus not found")

    disabled = []
    fusing.stop_fusing()
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/g++")
    monkeypatch.setattr(fusing.Fused, "compile", fail)
    monkeypatch.setattr(mx, "disable_compile", lambda: disabled.append(True))
    assert not fusing.compile_kernels()
    assert disabled
    assert not fusing.is_fusing()
    assert "cc1plus not found" in caplog.text
