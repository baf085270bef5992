"""The two tables of an ELF library that blas.py needs: its dynamic symbols and relocations.

Layout: https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html (chapters 4 and 5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cached_property

_RELOCATIONS, _DYNAMIC_SYMBOLS = 4, 11  # section types
# Relocations that hold a function's address: GLOB_DAT and JUMP_SLOT of x86-64 and of aarch64.
_FUNCTION_SLOTS = frozenset((6, 7, 1025, 1026))


class ElfError(ValueError):
    """Not a 64-bit little-endian ELF library, or a damaged one."""


class ElfLibrary:
    """A library's bytes, read on demand. Every method may raise ElfError."""

    def __init__(self, content: bytes) -> None:
        if content[:6] != b"\x7fELF\x02\x01":
            raise ElfError("not a 64-bit little-endian ELF library")
        self._content = content

    def defined_symbols(self) -> list[str]:
        """Names that the library offers to others."""
        return list(dict.fromkeys(name for name, defined in self._symbols if name and defined))

    def function_slots(self) -> Iterator[tuple[str, int]]:
        """(symbol, address relative to the library's start) of each slot with a function."""
        try:
            for section in self._sections:
                if section[1] != _RELOCATIONS:
                    continue
                # offset, symbol and type, addend
                for offset, info, _ in struct.iter_unpack("<QQq", self._bytes_of(section)):
                    if info & 0xFFFFFFFF in _FUNCTION_SLOTS:
                        yield self._symbols[info >> 32][0], offset
        except (struct.error, IndexError) as error:
            raise ElfError(f"damaged relocations: {error}") from error

    @cached_property
    def _sections(self) -> list[tuple[int, ...]]:
        """name, type, flags, address, offset, size, link, info, alignment, entry size"""
        try:
            (start,) = struct.unpack_from("<Q", self._content, 0x28)
            size, count = struct.unpack_from("<HH", self._content, 0x3A)
            starts = [start + i * size for i in range(count)]
            return [struct.unpack_from("<IIQQQQIIQQ", self._content, at) for at in starts]
        except struct.error as error:
            raise ElfError(f"damaged section table: {error}") from error

    @cached_property
    def _symbols(self) -> list[tuple[str, bool]]:
        """(name, defined here) in the order of the table."""
        table = next((s for s in self._sections if s[1] == _DYNAMIC_SYMBOLS), None)
        if table is None:
            raise ElfError("no dynamic symbols in it")
        try:
            names = self._bytes_of(self._sections[table[6]])
            # name, info, other, section (0: not defined here), value, size
            entries = struct.iter_unpack("<IBBHQQ", self._bytes_of(table))
            return [
                (names[name : names.index(0, name)].decode(), bool(section))
                for name, _, _, section, _, _ in entries
            ]
        except (struct.error, IndexError, ValueError) as error:
            raise ElfError(f"damaged symbol table: {error}") from error

    def _bytes_of(self, section: tuple[int, ...]) -> bytes:
        return self._content[section[4] : section[4] + section[5]]
