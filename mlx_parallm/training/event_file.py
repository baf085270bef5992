"""Scalars as TensorBoard reads them, written without TensorBoard.

A file is a row of records (length, its checksum, data, its checksum), each an `Event` of
protocol buffers. Sources: tensorflow/core/lib/io/record_writer.h (the records and the masked
CRC-32C), tensorflow/core/util/event.proto and framework/summary.proto (field numbers).
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected
_MASK_DELTA = 0xA282EAD8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class EventFile:
    """One run's scalars.

    Args:
        folder: that `tensorboard --logdir` is given.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**6}.{socket.gethostname()}"
        self._stream: BinaryIO = (folder / name).open("ab")
        self._record(_field(3, _BYTES, b"brain.Event:2"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a step's scalars, by their tags."""
        summary = b"".join(
            _field(1, _BYTES, _field(1, _BYTES, tag.encode()) + _field(2, _FIXED32, value))
            for tag, value in values.items()
        )
        self._record(_field(2, _VARINT, step) + _field(5, _BYTES, summary))
        self._stream.flush()

    def close(self) -> None:
        """End the file."""
        self._stream.close()

    def _record(self, event: bytes) -> None:
        data = _field(1, _FIXED64, time.time()) + event
        length = struct.pack("<Q", len(data))
        self._stream.write(length + _checksum(length) + data + _checksum(data))


def _field(number: int, kind: int, value: float | bytes) -> bytes:
    key = _varint(number << 3 | kind)
    if isinstance(value, bytes):
        return key + _varint(len(value)) + value
    if kind == _VARINT:
        return key + _varint(int(value))
    return key + struct.pack("<d" if kind == _FIXED64 else "<f", value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


@lru_cache(maxsize=1)
def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table


def _checksum(data: bytes) -> bytes:
    """The masked CRC-32C, 4 bytes."""
    crc, table = 0xFFFFFFFF, _table()
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + _MASK_DELTA) & 0xFFFFFFFF)
