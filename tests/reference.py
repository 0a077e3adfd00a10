"""What the C++ core computes, in plain NumPy: meant to be read, and compared with bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio


def mix(z: int) -> int:
    """The finaliser of SplitMix64."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def words(seed: int, step: int, task: int) -> Iterator[int]:
    """The 32-bit random words of one task."""
    key = seed
    for number in (0, step, task):
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
    ways: int,
    shots: int,
    queries: int,
    seed: int,
    step: int,
    tasks: int,
    random_rotation: bool = False,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """The classes, examples and quarter turns of meta-batch `step`."""
    classes = np.empty([tasks, ways], np.int64)
    indices = np.empty([tasks, ways, shots + queries], np.int64)
    turns = np.empty([tasks, ways], np.uint8)
    for task in range(tasks):
        random = words(seed, step, task)
        classes[task] = shuffled(len(quarter_turns), ways, random)
        for way, c in enumerate(classes[task]):
            members = class_indices[class_offsets[c] : class_offsets[c + 1]]
            turn = below(4, random) if random_rotation else 0
            turns[task, way] = (int(quarter_turns[c]) + turn) % 4
            indices[task, way] = members[shuffled(len(members), shots + queries, random)]
    return classes, indices, turns


def gather(
    examples: npt.NDArray[np.uint8] | npt.NDArray[np.float32],
    indices: npt.NDArray[np.int64],
    turns: npt.NDArray[np.uint8],
    shots: int,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The drawn examples, turned and as float32: `(support, query)`."""
    tasks, ways, per_class = indices.shape
    shape = examples.shape[1:]
    drawn = np.empty([*indices.shape, *shape], np.float32)
    for task, way in np.ndindex(tasks, ways):
        for i, index in enumerate(indices[task, way]):
            example = examples[index]
            if turns[task, way] % 4:
                example = np.rot90(example, turns[task, way] % 4)
            if example.dtype == np.uint8:
                example = example.astype(np.float32) * np.float32(1 / 255)
            drawn[task, way, i] = example
    support = drawn[:, :, :shots].reshape(tasks, ways * shots, *shape)
    query = drawn[:, :, shots:].reshape(tasks, ways * (per_class - shots), *shape)
    return support, query


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
