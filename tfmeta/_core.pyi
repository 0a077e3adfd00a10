"""The C++ core: a meta-batch and its copying, prototypes and distances. Private; see csrc/*.h."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

_T = TypeVar("_T", np.float32, np.float64)

def sample(
    class_offsets: npt.NDArray[np.int64],
    class_indices: npt.NDArray[np.int64],
    quarter_turns: npt.NDArray[np.uint8],
    ways: int,
    shots: int,
    queries: int,
    seed: int,
    step: int,
    tasks: int,
    random_rotation: bool = False,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Draw which classes and examples make up the tasks of meta-batch `step`.

    `seed` and `step` are in `[0, 2**64)`. Returns classes `[tasks, ways]`, positions of examples
    `[tasks, ways, shots + queries]`, and the counter-clockwise quarter turns of each class
    `[tasks, ways]`: those of `quarter_turns` plus, with `random_rotation`, random ones.
    """

def gather(
    examples: npt.NDArray[np.uint8] | npt.NDArray[np.float32],
    indices: npt.NDArray[np.int64],
    turns: npt.NDArray[np.uint8],
    shots: int,
    threads: int = 1,
    mapped_file: bool = False,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Copy drawn examples into support `[tasks, ways * shots, ...]` and query arrays.

    uint8 is multiplied by `float32(1 / 255)`, float32 is checked to be finite. The results begin
    at a multiple of 64 bytes. `mapped_file` says that `examples` are the pages of a shared
    memory-mapped file, which are given back to the system after use. Never say so of other memory:
    its content would be lost.
    """

def prototypes(
    embeddings: npt.NDArray[_T], labels: npt.NDArray[np.int64], ways: int, threads: int = 0
) -> npt.NDArray[_T]:
    """Return the mean `[tasks, ways, d]` of each class of `[tasks, n, d]`, labelled `[tasks, n]`.

    Refuses labels outside of `0..ways-1` and classes without examples. All arrays are contiguous
    here and below, and 0 threads are as many as there are cores.
    """

def squared_euclidean(
    queries: npt.NDArray[_T], prototypes: npt.NDArray[_T], threads: int = 0
) -> npt.NDArray[_T]:
    """Return `[tasks, q, ways]` of `[tasks, q, d]` and `[tasks, ways, d]`, by differences."""

def cosine_similarity(
    queries: npt.NDArray[_T], prototypes: npt.NDArray[_T], threads: int = 0
) -> npt.NDArray[_T]:
    """Return `[tasks, q, ways]` of `[tasks, q, d]` and `[tasks, ways, d]`; 0 with a zero vector."""
