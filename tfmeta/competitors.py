"""What can be compared with learners on the same episodes: classifiers of others, and baselines."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import keras
import numpy as np

from tfmeta.algorithms.embedding_learner import EmbeddingLearner
from tfmeta.embeddings import embedding_of, of_model
from tfmeta.meta_learner import MetaLearner
from tfmeta.scoring import Chunk, score, share_right
from tfmeta.simple_heads import CENTROID, NotFiniteError, OnEmbeddings, flat, why_not_raw
from tfmeta.simple_regression import Means, ridge_error
from tfmeta.types import Array


class Classifier(Protocol):
    """What scikit-learn calls an estimator: of classes, or of numbers."""

    def fit(self, x: Any, y: Any) -> Any:
        """Learn a support set."""
        ...

    def predict(self, x: Any) -> Any:
        """Return an answer for each query."""
        ...


Encoder: TypeAlias = keras.Model | Callable[[Any], Any]
# The inputs of an episode without padding, its targets, and which of them count.
Episode: TypeAlias = tuple[dict[str, Any], Array, Array]
# The scores of a chunk's episodes.
Scores: TypeAlias = Callable[[Chunk, Sequence[Episode]], list[float]]


class Fitted:
    """A classifier that is fitted to the features of each support set.

    Args:
        name: What the user calls it, for errors.
        classifier: It stays as it is: a copy is fitted.
        encoder: What makes features of examples; `None` takes the examples, flattened.
        classes: Whether targets are class numbers.
        ignored: The class that does not count, if there is one.
    """

    def __init__(
        self,
        name: str,
        classifier: Classifier,
        encoder: Encoder | None,
        classes: bool,
        ignored: int | None,
    ) -> None:
        self._name, self._classifier, self._encoder = name, classifier, encoder
        self._classes, self._ignored = classes, ignored
        embed = of_model(encoder) if isinstance(encoder, keras.Model) else flat
        self._features = OnEmbeddings(embed, {}, "float32")

    def __call__(self, chunk: Chunk, episodes: Sequence[Episode]) -> list[float]:
        """Return the scores of a chunk's episodes."""
        given = [inputs for inputs, _, _ in episodes]
        try:
            if self._encoder is None or isinstance(self._encoder, keras.Model):
                features = self._features.features(given, chunk.size, chunk.first)
            else:
                features = [self._called(x, chunk.first + i) for i, x in enumerate(given)]
        except NotFiniteError as error:
            raise ValueError(f"{self._who} must have finite features. Received: {error}") from error
        return [
            self._score(z, targets, counted, chunk.first + i)
            for i, (z, (_, targets, counted)) in enumerate(zip(features, episodes, strict=True))
        ]

    @property
    def _who(self) -> str:
        return f"`learners[{self._name!r}]`"

    def _called(self, inputs: dict[str, Any], episode: int) -> dict[str, Any]:
        """Return an episode with features that a function makes."""
        found = {}
        for name in ("support_x", "query_x"):
            x = np.asarray(inputs[name])[0]
            z = np.asarray(self._encoder(x))  # type: ignore[misc]
            if z.ndim != 2 or len(z) != len(x):
                raise ValueError(
                    f"{self._who} must have an encoder that returns one vector [n, d] for each "
                    f"example. Received: shape={z.shape} for {len(x)} examples"
                )
            if not np.isfinite(z).all():
                raise NotFiniteError(episode)
            found[name] = z[None]
        return {**inputs, **found}

    def _score(self, z: dict[str, Any], targets: Array, counted: Array, episode: int) -> float:
        classifier = copy.deepcopy(self._classifier)
        try:
            classifier.fit(np.asarray(z["support_x"])[0], np.asarray(z["support_y"])[0])
            found = np.asarray(classifier.predict(np.asarray(z["query_x"])[0]))
        except Exception as error:
            raise ValueError(f"{self._who} failed in episode {episode}: {error}") from error
        # Regression of a single output may leave out its axis.
        fits = found.shape == targets[0].shape or (not self._classes and found.size == targets.size)
        finite = np.issubdtype(found.dtype, np.number) and np.isfinite(found).all()
        if not (fits and finite):
            raise ValueError(
                f"{self._who} must predict finite numbers of the shape {targets[0].shape}, one for "
                f"each query. Received: {found.dtype} of shape {found.shape} in episode {episode}"
            )
        if self._classes:
            return share_right(found[None], targets, counted, self._ignored)
        return score(found.reshape(targets.shape), targets, counted, False, None)


def baselines(
    learners: Mapping[str, Any], inputs: dict[str, Any], classes: bool, ignored: int | None
) -> tuple[dict[str, Scores], dict[str, str]]:
    """Return what is scored beside learners, and why some of it is not, both by name.

    Args:
        learners: Those that are compared, built.
        inputs: An episode's.
        classes: Whether targets are class numbers.
        ignored: The class that does not count, if there is one.
    """
    raw = why_not_raw(inputs["support_x"])
    left_out = {} if raw is None else {"raw inputs": raw}
    found: dict[str, Scores] = {}
    if not classes:
        means = Means()
        found["mean of the support set"] = lambda _, episodes: [means.of_task(*e) for e in episodes]
        if raw is None:
            found["ridge on raw inputs"] = lambda _, episodes: [ridge_error(*e) for e in episodes]
        return found, left_out
    if np.asarray(inputs["support_y"]).ndim != 2:
        return {}, {"nearest centroid": "it takes one class for each example"}
    by_encoder: dict[int, tuple[list[str], OnEmbeddings]] = {}
    for name, learner in learners.items():
        if not isinstance(learner, MetaLearner | tuple):
            continue
        encoder = _encoder_of(learner)
        if id(encoder) in by_encoder:
            by_encoder[id(encoder)][0].append(name)
            continue
        if isinstance(learner, MetaLearner):
            several = keras.tree.is_nested(inputs["support_x"])
            embed = raw if raw is not None and several else embedding_of(learner)
        else:
            embed = (
                of_model(encoder)
                if isinstance(encoder, keras.Model)
                else "its encoder is no Keras model"
            )
        if isinstance(embed, str):
            left_out[f"the embedding of {name}"] = embed
        else:
            by_encoder[id(encoder)] = ([name], OnEmbeddings(embed, CENTROID, "float32"))
    for names, heads in by_encoder.values():
        found[f"nearest centroid on the embedding of {' and '.join(names)}"] = _scores(
            heads, ignored
        )
    if raw is None:
        heads = OnEmbeddings(flat, CENTROID, "float32")
        found["nearest centroid on raw inputs"] = _scores(heads, ignored)
    return found, left_out


def _encoder_of(learner: Any) -> Any:
    """Return what two learners have in common whose embeddings are the same."""
    if isinstance(learner, tuple):
        return learner[0]
    return learner.encoder if isinstance(learner, EmbeddingLearner) else learner


def _scores(heads: OnEmbeddings, ignored: int | None) -> Scores:
    def scores(chunk: Chunk, episodes: Sequence[Episode]) -> list[float]:
        z = heads.features([inputs for inputs, _, _ in episodes], chunk.size, chunk.first)
        return [
            share_right(classes, targets, counted, ignored)
            for answer, (_, targets, counted) in zip(
                heads.answers(z, chunk.size), episodes, strict=True
            )
            for classes in answer.values()
        ]

    return scores
