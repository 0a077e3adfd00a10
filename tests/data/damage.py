"""Ways to damage a file, for tests of what reads it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np


def _flip(content: bytearray, random: np.random.Generator) -> None:
    for _ in range(random.integers(1, 4)):
        if content:
            content[random.integers(len(content))] ^= 1 << int(random.integers(8))


def _cut(content: bytearray, random: np.random.Generator) -> None:
    del content[int(random.integers(len(content) + 1)) :]


def _lengthen(content: bytearray, random: np.random.Generator) -> None:
    content += random.bytes(int(random.integers(1, 300)))


def _zero(content: bytearray, random: np.random.Generator) -> None:
    at, length = _stretch(content, random)
    content[at : at + length] = bytes(length)


def _swap(content: bytearray, random: np.random.Generator) -> None:
    at, length = _stretch(content, random)
    half = length // 2
    first, second = content[at : at + half], content[at + half : at + 2 * half]
    content[at : at + 2 * half] = second + first


def _drop(content: bytearray, random: np.random.Generator) -> None:
    at, length = _stretch(content, random)
    del content[at : at + length]


def _deepen(content: bytearray, random: np.random.Generator) -> None:
    """What a parser that calls itself does not get through."""
    content[:] = [b"[", b'{"a":'][random.integers(2)] * 100_000


def _stretch(content: bytearray, random: np.random.Generator) -> tuple[int, int]:
    at = int(random.integers(len(content) + 1))
    return at, int(random.integers(1, 200)) % (len(content) - at + 1)


WAYS: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    *(_flip, _flip, _flip, _cut, _lengthen, _zero, _swap, _drop, _deepen),
)


def damage(file: Path, random: np.random.Generator) -> str:
    """Damage a file at random, and return how; its time stays, as after a fault of the disk."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    way = WAYS[random.integers(len(WAYS))]
    way(content, random)
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    return f"{way.__name__} {file.name}"
