"""What the C++ core computes, in plain NumPy: meant to be read, and compared with bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio


def mix(z: int) -> int:
    """The finaliser of SplitMix64."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def words(seed: int, *numbers: int) -> Iterator[int]:
    """The 32-bit random words of one task: `numbers` are step and task."""
    key = seed
    for number in (0, *numbers):
        key = mix(((key ^ number) + _GOLDEN) & _MASK)
    while True:
        key = (key + _GOLDEN) & _MASK
        yield mix(key) >> 32


def below(bound: int, random: Iterator[int]) -> int:
    """An integer in `[0, bound)`, each equally likely."""
    while True:
        product = next(random) * bound
        if product % 2**32 >= (2**32 - bound) % bound:
            return product >> 32


def shuffled(n: int, k: int, random: Iterator[int]) -> list[int]:
    """The first `k` places of a Fisher-Yates shuffle of `range(n)`."""
    places = list(range(n))
    for i in range(k):
        j = i + below(n - i, random)
        places[i], places[j] = places[j], places[i]
    return places[:k]


def sample(
    class_offsets: npt.NDArray[np.int64],
    class_indices: npt.NDArray[np.int64],
    quarter_turns: npt.NDArray[np.uint8],
    pools: list[list[int]],
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
    """The classes, examples and quarter turns of meta-batch `step`; -1 where there is none."""
    classes = np.full([tasks, ways[1]], -1, np.int64)
    indices = np.full([tasks, ways[1], shots[1] + queries], -1, np.int64)
    turns = np.zeros([tasks, ways[1]], np.uint8)
    sizes = np.diff(class_offsets).tolist()

    def number(least: int, most: int, is_range: bool) -> int:
        return least + below(most - least + 1, random) if is_range else most

    for task in range(tasks):
        random = words(seed, step, first_task + task)
        pool = pools[below(len(pools), random) if len(pools) > 1 else 0]
        k = number(ways[0], min(ways[1], len(pool)), ways[0] < ways[1])
        if weighted:
            drawn: list[int] = []
            for _ in range(k):
                left = [c for c in pool if c not in drawn for _ in range(sizes[c])]
                drawn.append(left[below(len(left), random)])
            drawn = [drawn[i] for i in shuffled(k, k, random)]
        else:
            drawn = [pool[i] for i in shuffled(len(pool), k, random)]
        classes[task, :k] = drawn
        is_range = shots[0] < shots[1]
        room = [min(shots[1], sizes[c] - queries) for c in drawn]
        for_all = number(shots[0], min(room), is_range and balanced)
        for way, c in enumerate(drawn):
            own = number(shots[0], room[way], True) if is_range and not balanced else for_all
            turn = below(4, random) if random_rotation else 0
            turns[task, way] = (int(quarter_turns[c]) + turn) % 4
            members = class_indices[class_offsets[c] : class_offsets[c + 1]]
            examples = members[shuffled(len(members), own + queries, random)]
            indices[task, way, :own] = examples[:own]
            indices[task, way, shots[1] :] = examples[own:]
    return classes, indices, turns


def sample_unlabelled(
    class_offsets: npt.NDArray[np.int64],
    class_indices: npt.NDArray[np.int64],
    quarter_turns: npt.NDArray[np.uint8],
    pools: list[list[int]],
    ways: tuple[int, int],
    shots: tuple[int, int],
    queries: int,
    unlabelled: int,
    distractors: int,
    *where: int,
    **options: bool,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """The labelled and unlabelled examples of meta-batch `step`, and all classes' quarter turns.

    A task is drawn of as many more classes as there are distractors, with as many more queries as
    there are unlabelled examples; these are the last queries, and those classes the last of a task.
    """
    wide = (ways[0] + distractors, ways[1] + distractors)
    classes, indices, turns = sample(
        class_offsets, class_indices, quarter_turns, pools, wide, shots, queries + unlabelled,
        *where, **options,
    )  # fmt: skip
    labelled = np.full([len(classes), ways[1], shots[1] + queries], -1, np.int64)
    for task, drawn in enumerate(classes.tolist()):
        for way in range(sum(c >= 0 for c in drawn) - distractors):
            labelled[task, way] = indices[task, way, : shots[1] + queries]
    return labelled, indices[:, :, shots[1] + queries :], turns


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
    """How each image of meta-batch `step` is changed; each of its words has one use."""

    def factor(word: int, half_width: float) -> np.float32:
        u = np.float32(word >> 8) * np.float32(2**-23) - np.float32(1)
        return np.float32(1) + np.float32(half_width) * u

    drawn = np.zeros([tasks, places], AUGMENTATION)
    for task, place in np.ndindex(tasks, places):
        random = words(seed ^ 0x4155474D454E5431, step, first + task, place)
        word = [next(random) for _ in range(7)]
        drawn[task, place] = (
            flip and word[0] >> 31,
            (word[1] * (2 * crop + 1) >> 32) - crop,
            (word[2] * (2 * crop + 1) >> 32) - crop,
            factor(word[3], brightness),
            factor(word[4], contrast),
            cutout and word[5] * (rows - cutout + 1) >> 32,
            cutout and word[6] * (columns - cutout + 1) >> 32,
            cutout,
            cutout,
        )
    return drawn


def gather(
    examples: npt.NDArray[np.uint8 | np.uint16 | np.float16 | np.float32],
    indices: npt.NDArray[np.int64],
    turns: npt.NDArray[np.uint8],
    augmentations: npt.NDArray[np.void] | None = None,
    scale: npt.NDArray[np.float32] | None = None,
    offset: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """The drawn examples as float32: turned, augmented, normalised; zeros for index -1."""
    gathered = np.zeros([*indices.shape, *examples.shape[1:]], np.float32)
    for place in np.ndindex(*indices.shape):
        if indices[place] < 0:
            continue
        x = examples[indices[place]]
        if turns[place] % 4:
            x = np.rot90(x, turns[place] % 4)
        if augmentations is not None:
            if augmentations[place]["flip"]:
                x = x[:, ::-1]
            x = crop(x, int(augmentations[place]["top"]), int(augmentations[place]["left"]))
        x = as_float32(x)
        if augmentations is not None:
            x = recolour(x, augmentations[place]["brightness"], augmentations[place]["contrast"])
            top, left, height, width = (int(augmentations[place][name]) for name in CUT)
            x[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)] = 0
        if scale is not None:
            # Images without an axis of channels have one.
            x = x * (scale[0] if x.ndim == 2 else scale)
            x = x + (offset[0] if x.ndim == 2 else offset)
        gathered[place] = x
    return gathered


CUT = ("cut_top", "cut_left", "cut_height", "cut_width")
AUGMENTATION = np.dtype(
    [
        *((name, np.int32) for name in ("flip", "top", "left")),
        *((name, np.float32) for name in ("brightness", "contrast")),
        *((name, np.int32) for name in CUT),
    ]
)


def crop(x: npt.NDArray[Any], top: int, left: int) -> npt.NDArray[Any]:
    """The image of the same size that begins at `(top, left)`, with zeros beyond `x`."""
    rows, columns = x.shape[:2]
    cropped = np.zeros_like(x)
    for i, j in np.ndindex(rows, columns):
        if 0 <= i + top < rows and 0 <= j + left < columns:
            cropped[i, j] = x[i + top, j + left]
    return cropped


def as_float32(x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Whole numbers in [0, 1], floats as they are."""
    if x.dtype == np.uint8:
        return x.astype(np.float32) * np.float32(1 / 255)
    if x.dtype == np.uint16:
        return x.astype(np.float32) * np.float32(1 / 65535)
    return x.astype(np.float32)


def recolour(
    x: npt.NDArray[np.float32], brightness: np.float32, contrast: np.float32
) -> npt.NDArray[np.float32]:
    """Brightness, then contrast about the mean of all numbers, clipped to [0, 1]."""
    if brightness == 1 and contrast == 1:
        return x
    x = x * brightness
    if contrast != 1:
        sums = np.zeros(16)
        for i, number in enumerate(x.ravel()):
            sums[i % 16] += np.float64(number)
        mean = np.float32(np.cumsum(sums)[-1] / x.size)  # one after another
        x = (x - mean) * contrast + mean
    x = np.where(x < 0, np.float32(0), x)
    return np.where(x > 1, np.float32(1), x)


def batch_norm_first(dy, x, gamma, epsilon):
    """Return the gradients to x, γ and β of batch normalisation, by the chain rule."""
    n = len(x)
    centred = x - x.mean(0)
    scale = 1 / np.sqrt((centred**2).mean(0) + epsilon)
    by_normal = dy * gamma
    by_variance = (by_normal * centred).sum(0) * -(scale**3) / 2
    by_mean = -(by_normal * scale).sum(0) - by_variance * 2 / n * centred.sum(0)
    to_x = by_normal * scale + by_variance * 2 / n * centred + by_mean / n
    return to_x, (dy * centred * scale).sum(0), dy.sum(0)


def batch_norm_second(dy, x, gamma, a, p, q, epsilon):
    """Return the adjoints of dy, x and γ in batch normalisation's gradient, row by row.

    The gradient is written as a function of (dy, x, γ), and differentiated term by term.
    """
    n = len(x)
    centred = x - x.mean(0)
    scale = 1 / np.sqrt((centred**2).mean(0) + epsilon)
    normal = centred * scale

    def project(z):
        return z - z.mean(0) - normal * (z * normal).mean(0)

    to_dy = gamma * scale * project(a) + p * normal + q
    to_gamma = scale * (a * project(dy)).sum(0)
    # dx = γ s P(dy) depends on x through s and x̂; ∂s/∂x = −s² x̂/n and ∂⟨z, x̂⟩/∂x = s P(z).
    by_scale = gamma * (a * project(dy)).sum(0) * (-(scale**2) * normal / n)
    a_normal, dy_normal = (a * normal).sum(0), (dy * normal).sum(0)
    by_normal = -gamma * scale / n * scale * (dy_normal * project(a) + a_normal * project(dy))
    return to_dy, by_scale + by_normal + p * scale * project(dy), to_gamma


def max_pool_take(x, values, size, strides, before, out):
    """Return what of `values` is where the largest of each window of x is, window by window."""
    n, height, width, channels = x.shape
    taken = np.empty((n, *out, channels), x.dtype)
    for e, i, j, c in np.ndindex(*taken.shape):
        largest = None
        for a, b in np.ndindex(*size):
            y, z = i * strides[0] + a - before[0], j * strides[1] + b - before[1]
            inside = 0 <= y < height and 0 <= z < width
            if inside and (largest is None or x[e, y, z, c] > largest):
                largest, taken[e, i, j, c] = x[e, y, z, c], values[e, y, z, c]
    return taken


def convolution(x, kernel, strides, before, out):
    """Convolve `[n, h, w, groups, channels]` with `[*size, channels, groups, filters]`."""
    y = np.zeros((len(x), *out, *kernel.shape[-2:]), x.dtype)
    for e, i, j, pixel, tap in _taps(x, kernel.shape[:2], strides, before, out):
        y[e, i, j] += np.einsum("gc,cgf->gf", x[pixel], kernel[tap])
    return y


def convolution_to_input(y, kernel, strides, before, space):
    """Return the adjoint of what is convolved, `[n, *space, groups, channels]`."""
    channels, groups, _ = kernel.shape[2:]
    x = np.zeros((len(y), *space, groups, channels), y.dtype)
    for e, i, j, pixel, tap in _taps(x, kernel.shape[:2], strides, before, y.shape[1:3]):
        x[pixel] += np.einsum("gf,cgf->gc", y[e, i, j], kernel[tap])
    return x


def convolution_to_kernel(x, y, size, strides, before):
    """Return the adjoint of the kernels, `[*size, channels, groups, filters]`."""
    groups, channels = x.shape[-2:]
    kernel = np.zeros((*size, channels, groups, y.shape[-1]), x.dtype)
    for e, i, j, pixel, tap in _taps(x, size, strides, before, y.shape[1:3]):
        kernel[tap] += np.einsum("gc,gf->cgf", x[pixel], y[e, i, j])
    return kernel


def _taps(x, size, strides, before, out):
    """Each output's place, and which pixel meets which tap of the kernel there."""
    for e, i, j in np.ndindex(len(x), *out):
        for u, v in np.ndindex(*size):
            row, column = i * strides[0] + u - before[0], j * strides[1] + v - before[1]
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                yield e, i, j, (e, row, column), (u, v)


def prototypes(z, labels, ways):
    """Return the mean of each class, zeros for a class without examples."""
    means = np.zeros((len(z), ways, z.shape[-1]), z.dtype)
    for task, way in np.ndindex(len(z), ways):
        members = z[task, labels[task] == way]
        if len(members):
            means[task, way] = members.sum(0) / len(members)
    return means


def squared_euclidean(queries, prototypes):
    """Return the squared distance of each pair."""
    return ((queries[:, :, None] - prototypes[:, None]) ** 2).sum(-1)


def squared_euclidean_gradient(queries, prototypes, adjoint):
    """Return the adjoints of queries and prototypes, pair by pair."""
    pairs = 2 * adjoint[..., None] * (queries[:, :, None] - prototypes[:, None])
    return pairs.sum(2), -pairs.sum(1)


def cosine_similarity(queries, prototypes):
    """Return the cosine of each pair, 0 where one is zero."""
    out = np.zeros((*queries.shape[:2], prototypes.shape[1]), queries.dtype)
    for t, i, w in np.ndindex(*out.shape):
        q, c = queries[t, i], prototypes[t, w]
        if q.any() and c.any():
            out[t, i, w] = q @ c / np.sqrt((q @ q) * (c @ c))
    return out


def cosine_similarity_gradient(queries, prototypes, adjoint):
    """Return the adjoints of queries and prototypes, none of which are zero, pair by pair."""
    to_queries, to_prototypes = np.zeros_like(queries), np.zeros_like(prototypes)
    for t, i, w in np.ndindex(*adjoint.shape):
        q, c = queries[t, i], prototypes[t, w]
        cosine, norms = q @ c / np.sqrt((q @ q) * (c @ c)), np.sqrt((q @ q) * (c @ c))
        to_queries[t, i] += adjoint[t, i, w] * (c / norms - cosine * q / (q @ q))
        to_prototypes[t, w] += adjoint[t, i, w] * (q / norms - cosine * c / (c @ c))
    return to_queries, to_prototypes
