"""What needs no training: simple heads on embeddings, and on raw inputs number by number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from tfmeta.algorithms.embedding_learner import EmbeddingLearner
from tfmeta.algorithms.k_nearest_neighbors import KNearestNeighbors
from tfmeta.algorithms.logistic_regression import LogisticRegression
from tfmeta.algorithms.simple_shot import SimpleShot
from tfmeta.embeddings import Embed
from tfmeta.foreign.of_tensorflow import one_of_many
from tfmeta.padding import is_padded
from tfmeta.scoring import shapes_of
from tfmeta.types import Array, Tensor

Heads: TypeAlias = Mapping[str, Callable[[keras.Model], EmbeddingLearner]]

CENTROID: Heads = {"nearest centroid": lambda z: SimpleShot(z, centre=False, normalize=False)}
HEADS: Heads = {
    **CENTROID,
    "nearest neighbour": lambda z: KNearestNeighbors(z, k=1),
    "logistic regression": lambda z: LogisticRegression(z, l2=1.0),
}


class NotFiniteError(ValueError):
    """Of some episode the embeddings are not finite."""

    def __init__(self, episode: int) -> None:
        super().__init__(f"NaN or infinite in episode {episode}")


class OnEmbeddings:
    """The answers of several heads on embeddings of one kind, made once for all of them.

    Args:
        embed: What makes the embeddings.
        heads: What makes a head of a model that returns them, by name.
        dtype: Of the heads.
    """

    def __init__(self, embed: Embed, heads: Heads, dtype: str) -> None:
        self._make = heads
        self._dtype = dtype
        self._heads: dict[str, EmbeddingLearner] = {}
        embed, answers = (
            one_of_many(tf.function(function, autograph=False, reduce_retracing=True))
            for function in (embed, self._answers)
        )
        self._embed, self._answer = embed, answers

    def features(self, episodes: Sequence[Any], size: int, first: int) -> list[dict[str, Any]]:
        """Return episodes with embeddings `[1, n, d]` in the place of examples.

        Args:
            episodes: The inputs of each, a meta-batch of one task without padding.
            size: How many are computed in one call, if all are of one shape.
            first: The number of the first one.

        Raises:
            NotFiniteError: If an embedding is NaN or infinite.
        """
        found: list[dict[str, Any]] = []
        for part, number in _alike(episodes, size):
            parts = [_together(part, name, number) for name in ("support_x", "query_x")]
            pairs = [np.asarray(z) for z in self._embed(*parts)]
            for i, inputs in enumerate(part):
                z = dict(zip(("support_x", "query_x"), (x[i : i + 1] for x in pairs), strict=True))
                if not all(np.isfinite(x).all() for x in z.values()):
                    raise NotFiniteError(first + len(found))
                found.append({**inputs, **z})
        return found

    def answers(self, embedded: Sequence[Any], size: int) -> list[dict[str, Array]]:
        """Return of each episode the classes `[1, queries]` that each head answers.

        Args:
            embedded: What `features` returned.
            size: As there.
        """
        found = []
        for part, number in _alike(embedded, size):
            names = ("support_x", "support_y", "query_x")
            given = {name: _together(part, name, number) for name in names}
            given["support_y"] = tf.cast(given["support_y"], tf.int32)
            if not self._heads:
                self._build(given)
            classes = {name: np.asarray(x) for name, x in self._answer(given).items()}
            found += [{name: x[i : i + 1] for name, x in classes.items()} for i in range(len(part))]
        return found

    def _build(self, given: dict[str, Tensor]) -> None:
        for name, make in self._make.items():
            # The embeddings are there already.
            layers = [
                keras.Input(given["support_x"].shape[-1:], dtype=self._dtype, name="embedded"),
                keras.layers.Identity(dtype=self._dtype, name="identity"),
            ]
            head = make(keras.Sequential(layers, name="embedding"))
            head.check_inputs(given)
            self._heads[name] = head

    def _answers(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: tf.argmax(head(given, training=False), -1) for name, head in self._heads.items()
        }


def why_not_raw(x: Any) -> str | None:
    """Return why examples `[1, n, ...]` cannot be compared number by number, if they cannot."""
    if tf.nest.is_nested(x):
        return f"an example has {len(tf.nest.flatten(x))} parts"
    dtype = np.asarray(x).dtype
    if np.issubdtype(dtype, np.floating) or dtype == np.uint8:
        return None
    return f"{dtype} examples " + (
        "may be ids" if np.issubdtype(dtype, np.integer) else "are no numbers"
    )


def flat(support_x: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
    """Return examples `[tasks, n, ...]` as vectors: those of one another's numbers in a row."""
    return _flat(support_x), _flat(query_x)


def real(inputs: Any, targets: Array) -> tuple[dict[str, Any], Array]:
    """Return an episode, a meta-batch of one task, without what only fills it up."""
    names = ("support_x", "support_y", "query_x")
    if not is_padded(inputs):
        return {name: inputs[name] for name in names}, np.asarray(targets)
    support, query = (np.asarray(inputs[name]) for name in ("support_mask", "query_mask"))

    def kept(mask: Array, part: Any) -> Any:
        return tf.nest.map_structure(lambda x: np.asarray(x)[mask][None], part)

    found = {name: kept(support, inputs[name]) for name in names[:2]}
    return {**found, "query_x": kept(query, inputs["query_x"])}, kept(query, targets)


def _flat(x: Tensor) -> Tensor:
    size = int(np.prod(x.shape[2:]))
    return tf.cast(tf.reshape(x, [*tf.unstack(tf.shape(x)[:2]), size]), tf.float32)


def _alike(episodes: Sequence[Any], size: int) -> list[tuple[Sequence[Any], int]]:
    """Return what goes into one call each, and of how many episodes the call is."""
    if len({shapes_of(x) for x in episodes}) == 1:
        return [(episodes, size)]
    return [([x], 1) for x in episodes]


def _together(episodes: Sequence[Any], name: str, size: int) -> Tensor:
    """Return a part of several episodes, and the last one again and again up to `size`."""
    filled = [*episodes, *[episodes[-1]] * (size - len(episodes))]
    return tf.convert_to_tensor(np.concatenate([np.asarray(x[name]) for x in filled]))
