"""Several sources of episodes in one stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmeta.checks import check_count, check_dict, did_you_mean
from tfmeta.data.nested_stream import nested_stream
from tfmeta.data.stream import stream
from tfmeta.types import Array, Episodes, Sampler

if TYPE_CHECKING:
    import tensorflow as tf

# How far the sum of weights may be from 1, for rounding.
_ROUNDING = 1e-6
# Of inputs that a meta-batch has where tasks differ in size: the examples that they tell of.
_MASKS = {"support_mask": "support_y", "query_mask": "query_x"}


class Mixture:
    """Draws each meta-batch from one of several samplers, as a function of `(seed, step)`.

    Meta-batch `step` is meta-batch `step` of the sampler of source k, and k is drawn with the
    probability w_k from `(seed, step)` and nothing else. So the tasks of a meta-batch are of one
    source; ways, shots and queries are those of its own sampler. They may differ between the
    sources, but examples must have one shape and one type, for there is one model.

    Whether a source has tasks of different sizes or not, all have masks where one has.

    Args:
        samplers: Of each source, by name: `EpisodeSampler`, or whatever has its `batch`.
        weights: w_k by name: at least 0, with the sum 1. `None`: all sources alike.
        seed: Another seed gives another order of sources; at least 0. Each sampler has its own.
        source_key: Where to put the number of the source, counted in the order of `samplers`, into
            `inputs`: int32 `[tasks]` under this key, of which learners take no notice; `None`
            leaves it out. Labels never tell it.

    Attributes:
        names: The sources, in order.
        weights: w_k in the same order.
        description: The sources and their weights, in words.

    Raises:
        TypeError: `samplers` is no dict of samplers, or `weights` no dict of numbers.
        ValueError: There are no samplers, weights do not add up or name other sources, or the
            sources have examples of different shapes, types or keys.

    Example:
        >>> letters, _, _ = tfmeta.data.load("glyphs")
        >>> turned = letters.with_rotations()
        >>> mixture = tfmeta.data.Mixture(
        ...     {
        ...         "upright": tfmeta.data.EpisodeSampler(letters, ways=5, shots=1, queries=5),
        ...         "turned": tfmeta.data.EpisodeSampler(turned, ways=5, shots=5, queries=5),
        ...     },
        ...     weights={"upright": 0.7, "turned": 0.3},
        ... )
        >>> [mixture.draw_source(step) for step in range(4)]
        ['upright', 'turned', 'upright', 'turned']
        >>> inputs, targets = mixture.batch(step=0, meta_batch_size=4)

    Reference:
        Triantafillou et al.: Meta-Dataset: A dataset of datasets for learning to learn from few
        examples (ICLR 2020), where each episode is of one source.
    """

    def __init__(
        self,
        samplers: Mapping[str, Sampler],
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
        *,
        source_key: str | None = None,
    ) -> None:
        self.samplers = _checked(samplers)
        self.names = tuple(self.samplers)
        self.weights = _shares(self.names, weights)
        self.seed = check_count("seed", seed, least=0)
        self.source_key = _free(source_key)
        # One task of each: what a model will see.
        firsts = [sampler.batch(0, 1) for sampler in self.samplers.values()]
        _check_alike(self.names, firsts)
        self._masked = any(name in inputs for inputs, _ in firsts for name in _MASKS)
        self._ends = np.cumsum(self.weights)

    @property
    def description(self) -> str:
        """The sources and their weights, in words."""
        shares = (f"{w:.4g} {name}" for name, w in zip(self.names, self.weights, strict=True))
        return f"mixture of {', '.join(shares)}"

    def draw_source(self, step: int) -> str:
        """Returns the name of the source that meta-batch `step` is drawn from."""
        step = check_count("step", step, least=0)
        u = np.random.default_rng([self.seed, step]).random()
        # Rounded, the last end may be below 1; and a source of weight 0 is never drawn.
        k = min(int(np.searchsorted(self._ends, u, side="right")), len(self.names) - 1)
        while self.weights[k] == 0:
            k -= 1
        return self.names[k]

    def batch(self, step: int, meta_batch_size: int = 1) -> Episodes:
        """Returns meta-batch `step`.

        Args:
            step: Number of the meta-batch, at least 0.
            meta_batch_size: Number of tasks.

        Returns:
            What the sampler of the source returns, with masks where any source has them, and the
            number of the source where that was asked for.
        """
        return self._of(self.draw_source(step), step, meta_batch_size)

    def _of(self, name: str, step: int, meta_batch_size: int) -> Episodes:
        """Return meta-batch `step` of a source."""
        inputs, targets = self.samplers[name].batch(step, meta_batch_size)
        inputs = dict(inputs)
        if self._masked:
            for mask, of in _MASKS.items():
                shape = np.shape(_flat(inputs[of])[0])[:2]
                inputs.setdefault(mask, np.ones(shape, bool))
        if self.source_key is not None:
            number = self.names.index(name)
            inputs[self.source_key] = np.full(meta_batch_size, number, np.int32)
        return inputs, targets

    def shard(self, index: int, count: int) -> Mixture:
        """Returns the mixture of one of several workers, which share each meta-batch out.

        All workers draw from the same source at the same step; see `EpisodeSampler.shard`.

        Args:
            index: Which worker, from 0.
            count: How many there are.

        Raises:
            TypeError: The sampler of a source cannot be shared out.
        """
        for name, sampler in self.samplers.items():
            if not hasattr(sampler, "shard"):
                raise TypeError(
                    f"The sampler of each source must have `shard`. Received: {sampler!r} as "
                    f"{name!r}"
                )
        shards = {name: sampler.shard(index, count) for name, sampler in self.samplers.items()}
        weights = dict(zip(self.names, self.weights, strict=True))
        return Mixture(shards, weights, self.seed, source_key=self.source_key)

    def dataset(self, meta_batch_size: int = 1, start: int = 0) -> tf.data.Dataset:
        """Returns the endless `tf.data.Dataset` of meta-batches `start`, `start + 1`, ...

        Args:
            meta_batch_size: Number of tasks in a meta-batch.
            start: Number of the first meta-batch; a run that is resumed goes on where it was.

        Returns:
            A prefetched dataset of `(inputs, targets)` as in `batch`. A size in which the sources
            differ is `None` in its shapes. Tasks of one size train faster, for then they are
            computed side by side; see `docs/meta_step.md`.

        Example:

        ```python
        learner.fit(mixture.dataset(meta_batch_size=4), steps_per_epoch=500, epochs=20)
        ```
        """
        like = [self._of(name, start, meta_batch_size) for name in self.names]
        several = any(isinstance(part, dict) for part in like[0][0].values())
        return (nested_stream if several else stream)(self, meta_batch_size, start, like)

    def __repr__(self) -> str:
        shares = dict(zip(self.names, self.weights, strict=True))
        return f"Mixture({self.samplers!r}, weights={shares}, seed={self.seed})"


def _checked(samplers: Any) -> dict[str, Any]:
    check_dict("samplers", samplers, "names and samplers", "sampler")
    for name, sampler in samplers.items():
        if not isinstance(name, str) or not callable(getattr(sampler, "batch", None)):
            raise TypeError(
                "`samplers` must have names for keys and samplers for values. Received: "
                f"{name!r}: {sampler!r}"
            )
    return dict(samplers)


def _shares(names: tuple[str, ...], weights: Any) -> tuple[float, ...]:
    """Return the weight of each source."""
    if weights is None:
        return (1 / len(names),) * len(names)
    if not isinstance(weights, Mapping):
        raise TypeError(
            "`weights` must be a dict of a number for each source, or None. Received: "
            f"weights={weights!r}"
        )
    for name in weights:
        if name not in names:
            raise ValueError(
                f"`weights` must be of the sources {', '.join(map(repr, names))}. Received: "
                f"{name!r}.{did_you_mean(name, names)}"
            )
    if missing := [name for name in names if name not in weights]:
        raise ValueError(
            "`weights` must have a number for each source, which may be 0. Received: none for "
            f"{', '.join(map(repr, missing))}"
        )
    try:
        shares = tuple(float(weights[name]) for name in names)
    except (TypeError, ValueError):
        raise TypeError(f"`weights` must be numbers. Received: weights={weights!r}") from None
    if not all(np.isfinite(share) and share >= 0 for share in shares):
        raise ValueError(f"`weights` must be at least 0. Received: weights={dict(weights)}")
    if abs(sum(shares) - 1) > _ROUNDING:
        raise ValueError(
            f"`weights` must have the sum 1. Received: weights={dict(weights)}, whose sum is "
            f"{sum(shares):.6g}"
        )
    return shares


def _free(source_key: Any) -> str | None:
    taken = ("support_x", "support_y", "query_x", "unlabelled_x", "unlabelled_mask", *_MASKS)
    if source_key is not None and (not isinstance(source_key, str) or source_key in taken):
        raise ValueError(
            "`source_key` must be a name that inputs do not have yet, or None. Received: "
            f"source_key={source_key!r}"
        )
    return source_key


def _check_alike(names: tuple[str, ...], firsts: list[Episodes]) -> None:
    """Raise unless one model can take the episodes of all sources."""
    descriptions = [_examples(*first) for first in firsts]
    for name, found in zip(names, descriptions, strict=True):
        if found != descriptions[0]:
            raise ValueError(
                "The sources must have examples of one shape and type, for there is one model. "
                f"Received: {names[0]!r} with {_words(descriptions[0])}, and {name!r} with "
                f"{_words(found)}"
            )


def _examples(inputs: dict[str, Any], targets: Any) -> dict[str, list[Any]]:
    """Return shape and type of single examples, by what they are."""
    parts = {name: part for name, part in inputs.items() if name not in _MASKS}
    parts["targets"] = targets
    return {
        name: [(np.shape(x)[2:], np.asarray(x).dtype.name) for x in _flat(part)]
        for name, part in parts.items()
        if name != "unlabelled_mask"
    }


def _flat(part: Any) -> list[Array]:
    """Return the arrays of a part of the inputs, which has several for models of several inputs."""
    if isinstance(part, Mapping):
        return [x for key in sorted(part) for x in _flat(part[key])]
    if isinstance(part, tuple | list):
        return [x for each in part for x in _flat(each)]
    return [part]


def _words(examples: dict[str, list[Any]]) -> str:
    return ", ".join(
        f"{name} {' and '.join(f'{dtype} {list(shape)}' for shape, dtype in found)}"
        for name, found in examples.items()
    )
