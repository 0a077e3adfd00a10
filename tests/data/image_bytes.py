"""Image files written byte by byte, of kinds that Pillow reads and does not write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(pixels: np.ndarray, colour_type: int, *more: bytes) -> bytes:
    """A PNG file of uint8 or uint16 `[height, width, channels]`, with chunks before the data."""
    height, width, _ = pixels.shape
    depth = 8 * pixels.itemsize
    rows = b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *more]
    return b"".join([*parts, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def tiff(
    pixels: np.ndarray,
    photometric: int,
    order: str = "<",
    *,
    planes: bool = False,
    packed: bytes | None = None,
    bits: int | None = None,
    deflate: bool = False,
    tags: dict[int, Sequence[int]] | None = None,
) -> bytes:
    """A TIFF file of one page, `[height, width, channels]`, or of `packed` numbers of `bits`."""
    height, width, channels = pixels.shape
    stored = pixels.transpose(2, 0, 1) if planes else pixels
    parts = [part.astype(part.dtype.newbyteorder(order)).tobytes() for part in stored]
    strips = parts if planes else [packed or b"".join(parts)]
    strips = [zlib.compress(strip) if deflate else strip for strip in strips]
    sample = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    fields: dict[int, tuple[str, Sequence[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits or 8 * pixels.itemsize] * channels),
        259: ("H", [8 if deflate else 1]),
        262: ("H", [photometric]),
        273: ("I", [0] * len(strips)),
        277: ("H", [channels]),
        278: ("I", [height]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [2 if planes else 1]),
        339: ("H", [sample] * channels),
        **{tag: ("H", values) for tag, values in (tags or {}).items()},
    }
    size = 8 + 2 + 12 * len(fields) + 4
    beside = sum(n for _, v in fields.values() if (n := len(v) * 4) > 4)
    starts = np.cumsum([size + beside, *map(len, strips)])[:-1]
    fields[273] = ("I", starts.tolist())
    entries, blobs = b"", b""
    for tag, (kind, values) in sorted(fields.items()):
        content = struct.pack(f"{order}{len(values)}{kind}", *values)
        entries += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], len(values))
        if len(content) > 4:
            entries += struct.pack(f"{order}I", size + len(blobs))
            blobs += content
        else:
            entries += content.ljust(4, b"\0")
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HIH", 42, 8, len(fields))
    # What stands beside may be shorter than it was taken for.
    return (
        head + entries + struct.pack(f"{order}I", 0) + blobs.ljust(beside, b"\0") + b"".join(strips)
    )


def twelve_bits(numbers: np.ndarray) -> bytes:
    """Rows of numbers of 12 bits, each row in whole bytes."""
    rows = ["".join(format(int(n), "012b") for n in row) for row in numbers]
    return b"".join(
        int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big")
        for row in rows
    )
