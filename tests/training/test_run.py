"""The command: logs, plot, checkpoints, Ctrl-C, wrong options."""

from __future__ import annotations

import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_parallm.tools import train
from mlx_parallm.training import csv_log
from mlx_parallm.training.checkpoint import newest
from mlx_parallm.training.event_file import EventFile
from tests.training.conftest import EXAMPLE
from tests.waiting import PATIENCE_S

ARGUMENTS = (
    *("--data", str(EXAMPLE / "prompts.jsonl"), "--reward", f"{EXAMPLE / 'rewards.py'}:says_it"),
    *("--max-tokens", "8", "--prompts-per-step", "2", "--group-size", "2"),
)


def test_a_run_and_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    arguments = [*ARGUMENTS, "--output", str(folder), "--save-every", "1", "--keep", "2"]
    assert train.main([*arguments, "--steps", "3"]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert sorted(f.name for f in (folder / "checkpoints").iterdir()) == ["000002", "000003"]
    rows = csv_log.read(folder)
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert {"reward", "tokens_per_s", "mismatch", "kl"} < rows[0].keys()
    assert (folder / "reward.png").read_bytes().startswith(b"\x89PNG")
    (events,) = (folder / "tensorboard").iterdir()
    assert b"reward" in events.read_bytes()

    assert train.main([*arguments, "--steps", "4"]) == 1
    assert "holds a run already; --resume" in capsys.readouterr().err
    assert train.main([*arguments, "--steps", "4", "--resume"]) == 0
    assert [row["step"] for row in csv_log.read(folder)] == ["1", "2", "3", "4"]


def test_ctrl_c_saves_a_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlx_parallm", "train", *ARGUMENTS, "--steps", "100000"]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path), "--save-every", "100000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    shown = ""
    while "reward" not in shown:  # the bar, once a step is done
        shown += process.stderr.read(1)
        assert process.poll() is None, shown
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, rest
    assert "stopping after this step" in rest
    assert newest(tmp_path).step == len(csv_log.read(tmp_path)) >= 1


def test_wrong_options_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "out")]
    assert train.main([*ARGUMENTS, *output, "--reward", "guess"]) == 1
    assert train.main([*ARGUMENTS, *output, "--resume"]) == 1
    assert train.main([*ARGUMENTS, *output, "--keys", "self_attn.nothing"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["mlx_parallm_train"] * 3
    assert "no checkpoint" in lines[1] and "self_attn.nothing" in lines[2]


def test_tensorboard_reads_the_events(tmp_path: Path) -> None:
    events = EventFile(tmp_path)
    events.write(1, {"reward": 0.25})
    events.write(300, {"reward": 0.75, "kl": 1e-3})
    events.close()
    loader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed",
    )
    found = loader.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in found.Scalars("reward")] == [(1, 0.25), (300, 0.75)]
    assert found.Scalars("kl")[0].value == pytest.approx(1e-3)


def test_event_records(tmp_path: Path) -> None:
    """Lengths and masked checksums; CRC-32C of "123456789" is E3069283 (RFC 3720, B.4)."""
    from mlx_parallm.training.event_file import _checksum

    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert _checksum(b"123456789") == struct.pack("<I", masked)
    events = EventFile(tmp_path)
    events.write(7, {"x": 1.5})
    events.close()
    (file,) = tmp_path.iterdir()
    data, records = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert data[8:12] == _checksum(data[:8])
        record = data[12 : 12 + length]
        assert data[12 + length : 16 + length] == _checksum(record)
        records.append(record)
        data = data[16 + length :]
    assert len(records) == 2
    assert b"brain.Event:2" in records[0]
    assert records[1].endswith(b"\x0a\x01x" + b"\x15" + struct.pack("<f", 1.5))
