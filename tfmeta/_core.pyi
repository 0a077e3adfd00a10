"""The C++ core: a meta-batch and its copying, prototypes and distances. Private; see csrc/*.h."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

_T = TypeVar("_T", np.float32, np.float64)

def sample(
    class_offsets: npt.NDArray[np.int64],
    class_indices: npt.NDArray[np.int64],
    quarter_turns: npt.NDArray[np.uint8],
    pool_offsets: npt.NDArray[np.int64],
    pool_classes: npt.NDArray[np.int64],
    ways: tuple[int, int],
    shots: tuple[int, int],
    queries: int,
    seed: int,
    step: int,
    tasks: int,
    first_task: int = 0,
    random_rotation: bool = False,
    balanced: bool = True,
    weighted: bool = False,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Draw which classes and examples make up the tasks of meta-batch `step`.

    `seed` and `step` are in `[0, 2**64)`; `ways` and `shots` are the least and the most; the
    classes of pool p, from which all of a task are, are `pool_classes[pool_offsets[p] :
    pool_offsets[p + 1]]`. Returns classes `[tasks, ways]`, positions of examples
    `[tasks, ways, shots + queries]`, the queries behind the most shots, and the counter-clockwise
    quarter turns of each class `[tasks, ways]`: those of `quarter_turns` plus, with
    `random_rotation`, random ones. Where a task has fewer ways or shots there is -1.
    """

def augmentations(
    places: int,
    rows: int,
    columns: int,
    seed: int,
    step: int,
    tasks: int,
    first: int = 0,
    *,
    flip: bool = False,
    crop: int = 0,
    brightness: float = 0.0,
    contrast: float = 0.0,
    cutout: int = 0,
) -> npt.NDArray[np.void]:
    """Draw how each image of the tasks of meta-batch `step` is changed.

    `seed` and `step` are in `[0, 2**64)`, images are `rows` by `columns`. Returns records
    `[tasks, places]` of the tasks from `first` on: `flip`, `top` and `left` of the crop,
    `brightness`, `contrast`, and the box of the cut-out, `cut_top`, `cut_left`, `cut_height` and
    `cut_width`; factors are float32, all others int32.
    """

def gather(
    examples: npt.NDArray[Any] | Sequence[npt.NDArray[Any]],
    indices: npt.NDArray[np.int64],
    turns: npt.NDArray[np.uint8],
    augmentations: npt.NDArray[np.void] | None = None,
    scale: npt.NDArray[np.float32] | None = None,
    offset: npt.NDArray[np.float32] | None = None,
    threads: int = 1,
    mapped_file: bool = False,
) -> npt.NDArray[np.float32]:
    """Copy drawn examples into a float32 array: turned, augmented, normalised.

    `examples` are of uint8, uint16, float16 or float32; several contiguous arrays are seen as one,
    along the first axis. `indices`, of any shape, `turns` and `augmentations` have the same shape;
    the result has that and an example's. Index -1 gives zeros. uint8 is multiplied by
    `float32(1 / 255)`, uint16 by `float32(1 / 65535)`; floats are checked to be finite. `scale` and
    `offset` `[channels]` come last. The result begins at a multiple of 64 bytes. `mapped_file` asks
    the system to read the pages of the next example ahead, where it reads them from a file.
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
