"""The C++ core: what makes up a meta-batch, and its copying. Private; see csrc/*.h."""

import numpy as np
import numpy.typing as npt

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
