"""Data larger than memory."""

from __future__ import annotations

import ctypes
import mmap
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tfmeta import _core
from tfmeta.data import ClassDataset, EpisodeSampler

# Runs in a process of its own, so that nothing else is counted. What is read of the file stays
# with the system, which can drop it, and must not stay in the process.
PROGRAM = """
import sys
import numpy as np
from tfmeta.data import ClassDataset, EpisodeSampler, Shards

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1e3

path, dtype, side, megabytes = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
steps, parts = int(sys.argv[5]), int(sys.argv[6])
examples = np.memmap(path, dtype, "r").reshape(-1, side, side, 3)
if parts > 1:
    # Mapped as often as there are parts, as a folder of files is.
    size = len(examples) // parts
    offsets = range(0, size * parts, size)
    shape, each = (size, side, side, 3), examples[0].nbytes
    examples = Shards([np.memmap(path, dtype, "r", offset * each, shape) for offset in offsets])
dataset = ClassDataset(examples, np.arange(len(examples)) // 600)
sampler = EpisodeSampler(dataset, 5, 1, 15, num_threads=2)
before = highest = resident()
read = step = 0
while read < megabytes or step < steps:
    sampler.batch(step, 4 if megabytes else 1)
    step += 1
    read += 4 * 5 * 16 * examples[0].nbytes / 1e6
    highest = max(highest, resident())
print(examples.nbytes / 1e9, highest - before)
"""


def sparse_file(path: pathlib.Path, size: int) -> pathlib.Path:
    """A file of `size` bytes that takes no room, or a skipped test."""
    try:
        with path.open("wb") as file:
            file.truncate(size)
    except OSError as error:
        pytest.skip(f"no sparse files here: {error}")
    if path.stat().st_blocks * 512 > size // 100:
        pytest.skip("no sparse files here")
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured through /proc")
@pytest.mark.parametrize(
    ("dtype", "side", "parts"),
    [
        pytest.param("uint8", 84, 1, marks=pytest.mark.slow),
        pytest.param("float32", 42, 1, marks=pytest.mark.slow),
        pytest.param("uint8", 84, 20, marks=pytest.mark.slow),
        pytest.param("float64", 42, 1, marks=pytest.mark.slow),
    ],
)
def test_a_file_of_50_gb_is_read_within_200_mb(
    tmp_path: pathlib.Path, dtype: str, side: int, parts: int
) -> None:
    example = side * side * 3 * np.dtype(dtype).itemsize
    path = sparse_file(tmp_path / "examples", example * (50_100_000_000 // example))
    size, growth = size_and_growth(path, dtype, side, megabytes=500, parts=parts)
    assert size > 50
    assert growth < 200


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured through /proc")
@pytest.mark.parametrize("parts", [1, 50])
def test_100_gb_are_sampled_for_2000_steps_within_300_mb(
    tmp_path: pathlib.Path, parts: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sparse_file(tmp_path / "examples", 84 * 84 * 3 * (100_200_000_000 // (84 * 84 * 3)))
    size, growth = size_and_growth(path, "uint8", 84, steps=2000, parts=parts)
    with capsys.disabled():
        print(f"\n{size:.1f} GB in {parts} mappings: resident memory grew by {growth:.0f} MB")
    assert size > 100
    assert growth < 300


def size_and_growth(
    path: pathlib.Path, dtype: str, side: int, megabytes: int = 0, steps: int = 0, parts: int = 1
) -> tuple[float, float]:
    """Gigabytes of the file, and megabytes by which the process that samples from it grows."""
    numbers = map(str, (side, megabytes, steps, parts))
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, path, dtype, *numbers],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    size, growth = map(float, result.stdout.split()[-2:])
    return size, growth


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_what_is_in_the_file_comes_back(tmp_path: pathlib.Path, dtype: str, mode: str) -> None:
    """Also what was written to the mapping, after its pages were released again and again."""
    count, side = 1200, 160  # of which nine are written
    example = side * side * np.dtype(dtype).itemsize
    assert count * example > 30e6
    path = sparse_file(tmp_path / "examples", count * 4 * example)
    examples = np.memmap(path, dtype, "r+", shape=(count * 4, side, side))
    written = np.arange(9) * 577 + 3
    for i in written:
        examples[i] = i % 200 + 1
    if mode != "r+":
        examples.flush()
        examples = np.memmap(path, dtype, mode, shape=(count * 4, side, side))
    if mode == "c":
        examples[written[4]] = 250  # is in no file
    labels = np.full(count * 4, "unwritten")
    labels[written] = "written"
    dataset = ClassDataset(examples, labels).select(["written"])
    scale = np.float32(1 / 255) if dtype == "uint8" else np.float32(1)
    expected = [np.float32(i % 200 + 1) * scale for i in written]
    if mode == "c":
        expected[4] = np.float32(250) * scale
    for step in range(3):
        inputs, _ = EpisodeSampler(dataset, ways=1, shots=4, queries=5).batch(step)
        shown = np.concatenate([inputs["support_x"][0], inputs["query_x"][0]])
        assert (shown == shown[:, :1, :1]).all()
        assert sorted(shown[:, 0, 0]) == sorted(expected)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are released on Linux only")
def test_memory_beside_a_mapping_is_left_alone(tmp_path: pathlib.Path) -> None:
    """Pages are released in windows of 64 KiB, which may hold more than the file."""
    page = mmap.PAGESIZE
    path = tmp_path / "examples"
    path.write_bytes(bytes([7]) * (3 * page))
    whole = mmap.mmap(-1, 64 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = np.frombuffer(whole, np.uint8)
    memory[:] = 9

    # The file is put over three of the pages in the middle.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    start, map_fixed = memory.ctypes.data + 30 * page, 0x10
    with path.open("rb") as file:
        at = libc.mmap(
            start, 3 * page, mmap.PROT_READ, mmap.MAP_SHARED | map_fixed, file.fileno(), 0
        )
    assert at == start

    examples = memory[30 * page : 33 * page].reshape(-1, 64)[1:-1]
    indices = np.arange(len(examples))
    gathered = _core.gather(examples, indices, np.zeros(len(examples), np.uint8), mapped_file=True)
    assert (gathered == np.float32(7) * np.float32(1 / 255)).all()
    assert (memory[: 30 * page] == 9).all()
    assert (memory[30 * page : 33 * page] == 7).all()
    assert (memory[33 * page :] == 9).all()
