"""--transcription-model at start: with several models, without the extra, and with a wrong path."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.server.fleet.app import create_fleet_app
from mlx_parallm.server.main import build_engine
from mlx_parallm.settings import Settings
from tests.models.audio.tiny_whisper import QUICK, make_tiny_whisper, melody
from tests.server.conftest import Served

PATH = "/v1/audio/transcriptions"
FORM = {"language": "en", "temperature": "0.05", "response_format": "verbose_json"}


def failure(**settings: Any) -> str:
    """Why an engine does not start."""
    engine = build_engine(Settings(**settings))
    engine.start()
    try:
        with pytest.raises(ModelLoadError) as found:
            engine.wait_ready()
    finally:
        engine.stop()
    return str(found.value)


def test_without_the_extra_the_server_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx_audio", None)
    said = failure(transcription_model="whisper-1=openai/whisper-tiny")
    assert "--transcription-model openai/whisper-tiny" in said
    assert "pip install 'mlx_parallm[audio]'" in said


def test_a_wrong_path_is_told_before_the_chat_model_is_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    said = failure(model_path=str(tmp_path / "no-chat"), transcription_model=f"ears={missing}")
    assert str(missing) in said and "no-chat" not in said
    (missing).mkdir()
    said = failure(model_path=str(tmp_path / "no-chat"), transcription_model=f"ears={missing}")
    assert str(missing) in said and "config.json" in said


def test_a_fleet_writes_sounds_down_and_counts_them(tmp_path: Path, sounds: Any) -> None:
    """Whatever model was asked last, and whether the form names the one for sounds or none."""
    whisper = make_tiny_whisper(tmp_path / "whisper", sizes=QUICK)
    settings = Settings(
        also_serve=("bundled/draft",), transcription_model=f"ears={whisper}", log_level="warning"
    )
    server = Served(create_fleet_app(settings), None, 0.5)
    try:
        server.wait_ready()
        server.ok("/v1/completions", model="bundled/draft", prompt="x", max_tokens=2)
        file = {"file": sounds.wav(melody(1.5))}
        texts = []
        for name in ("ears", ""):
            answer = server.http.post(PATH, data=FORM | {"model": name, "seed": "7"}, files=file)
            assert answer.status_code == 200, answer.text
            texts.append(answer.json()["text"])
        assert texts[0] == texts[1] != ""
        assert server.http.post(PATH, data={"model": "draft"}, files=file).status_code == 404
        lines = server.http.get("/metrics").text.splitlines()
        assert 'mlx_parallm:transcriptions_total{model_name="bundled"} 2.0' in lines
        assert 'mlx_parallm:transcribed_seconds_total{model_name="bundled"} 3.0' in lines
    finally:
        server.stop()
        server.join()
