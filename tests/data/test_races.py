"""Calls of the C++ core that must not end the process: other threads write, memory is ordinary."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tfmeta import _core

# Without the package, whose import takes seconds.
LOAD = """
import importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("_core", sys.argv[1])
_core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_core)
"""

# Another thread writes numbers that point far outside to `shared`, and right ones again, while a
# call is under way: it is an error or a right result, whichever was there when the call began.
RACE = """
import threading, time

examples = np.random.default_rng(0).integers(0, 256, [64, 64, 64, 3], np.uint8)
right = examples.astype(np.float32) * np.float32(1 / 255)
n = 4096

def gather_indices(shared):
    gathered = _core.gather(examples, shared, np.zeros(n, np.uint8), threads=2)
    assert (gathered[::97] == right[3]).all()

flat = np.random.default_rng(0).integers(0, 256, [64, 32, 96, 3], np.uint8)

flat_right = flat[3] * np.float32(1 / 255)

def gather_turns(shared):
    gathered = _core.gather(flat, np.full(n, 3), shared, threads=2)
    assert (gathered[::97] == flat_right).all()

table = (np.arange(0, 6004, 4), np.arange(6000), np.zeros(1500, np.uint8))

def sample(offsets=table[0], classes=np.arange(1500)):
    drawn, indices, _ = _core.sample(
        offsets, *table[1:], np.array([0, 1500]), classes, (1500, 1500), (1, 1), 1, 5, 6, 40
    )
    assert drawn.min() >= 0 and drawn.max() < 1500
    assert indices.min() >= 0 and indices.max() < 6000

embeddings = np.ones([1, n, 256], np.float32)

def prototypes(shared):
    means = _core.prototypes(embeddings, shared, 1, threads=2)
    assert (means == 1).all()

cases = {
    "gather_indices": (np.full(n, 3), 1 << 40, gather_indices),
    "gather_turns": (np.zeros(n, np.uint8), 1, gather_turns),
    "sample_offsets": (table[0].copy(), 1 << 40, sample),
    "sample_classes": (np.arange(1500), 1 << 40, lambda shared: sample(classes=shared)),
    "prototypes": (np.zeros([1, n], np.int64), 1 << 40, prototypes),
}
shared, far, call = cases[sys.argv[2]]
good = shared.copy()
done = threading.Event()

def write():
    while not done.is_set():
        shared[...] = far
        shared[...] = good

sys.setswitchinterval(1e-5)
writer = threading.Thread(target=write, daemon=True)
writer.start()
begun = time.monotonic()
while time.monotonic() < begun + 1:
    try:
        call(shared)
    except ValueError:
        pass
done.set()
writer.join()
"""

CASES = ("gather_indices", "gather_turns", "sample_offsets", "sample_classes", "prototypes")


@pytest.mark.parametrize("case", CASES)
def test_another_thread_writes_to_the_numbers_of_a_call(case: str) -> None:
    run(RACE, case)


# What is said of a file must change nothing in memory that is none.
ORDINARY = """
import mmap

rng = np.random.default_rng(0)
heap = rng.integers(0, 256, [600, 84, 84, 3], np.uint8)
private = np.frombuffer(mmap.mmap(-1, heap.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
                        np.uint8).reshape(heap.shape)
private[:] = heap
small = [rng.integers(0, 256, [50, 9, 9], np.uint8) for _ in range(500)]
copies = [array.copy() for array in small]
indices = np.arange(600)
for examples in (heap, private):
    for _ in range(2):
        gathered = _core.gather(examples, indices, np.zeros(600, np.uint8), mapped_file=True)
        assert (gathered == heap * np.float32(1 / 255)).all()
    del gathered
_core.gather(small, np.arange(25000), np.zeros(25000, np.uint8), mapped_file=True)
assert all((a == b).all() for a, b in zip(small, copies))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such maps")
def test_memory_that_is_no_mapped_file_keeps_what_it_holds() -> None:
    run(ORDINARY)


def run(program: str, *arguments: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LOAD + program, _core.__file__, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, (result.returncode, result.stderr[-2000:])
