"""A learner that adapts for whoever asks, in whatever way they ask."""

from __future__ import annotations

import dataclasses
import io
import re
import tempfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmeta.classifier import Classifier
from tfmeta.embeddings import embedding_of
from tfmeta.export.serving import learner_signatures
from tfmeta.inputs import known_example
from tfmeta.meta_learner import MetaLearner
from tfmeta.ops import squared_euclidean
from tfmeta.serving.bodies import Support
from tfmeta.serving.limits import RefusedError
from tfmeta.serving.tasks import Task
from tfmeta.threshold import UNKNOWN, Threshold
from tfmeta.types import Array

# Of ways and shots: the threshold for tasks of that size.
FitThreshold = Callable[[int, int], Threshold]

# What a model can be fetched as.
KINDS = ("keras", "saved_model")
NEAREST = 3
# Sizes of tasks of which thresholds are kept; each took seconds.
_MOST_THRESHOLDS = 256


class Service:
    """A learner, traced once; what it is asked may come from several threads.

    Args:
        learner: A trained learner of images.
        images: How image files become what its model takes: `size`, `grayscale`, `invert`.
        fit_threshold: Finds from which score on tasks of so many ways and shots are answered; by
            default every query is.

    Raises:
        ValueError: If the learner is not one of classes of images.
    """

    def __init__(
        self,
        learner: MetaLearner,
        images: dict[str, Any],
        fit_threshold: FitThreshold | None = None,
    ) -> None:
        self.learner, self.images, self.fit_threshold = learner, images, fit_threshold
        if not learner.built:
            shape = known_example(learner.model).shape
            learner.build({"support_x": (1, 1, *shape[1:])})
        signatures = learner_signatures(learner)
        self._adapt, self._predict = signatures["adapt"], signatures["predict"]
        shape = self._predict.structured_outputs["predictions"].shape
        self._dtype = tf.as_dtype(learner.example.dtype)
        if (
            not self._dtype.is_floating
            or len(shape) != 2
            or not learner.labels.spec.dtype.is_integer
        ):
            raise ValueError(
                "A learner that is served must tell classes of images apart, whose pixels are "
                f"fractions. Received: one of {self._dtype.name} {learner.example.shape} with "
                f"outputs {shape}"
            )
        # Where the network's last layer fixes it.
        self.ways: int | None = shape[1]
        self._distances, self.why_no_nearest = self._traced_distances()
        self._thresholds: OrderedDict[tuple[int, int], Threshold] = OrderedDict()
        # The learner's own methods are for one thread at a time; what is traced is for all.
        self._learner_lock = threading.Lock()

    def adapt(self, support: Support) -> Task:
        """Return what is learnt of examples.

        Raises:
            RefusedError: If they do not fit the learner.
        """
        ways = len(support.class_names)
        if self.ways not in (None, ways):
            raise RefusedError(
                422, f"This learner tells exactly {self.ways} classes apart. Received: {ways}"
            )
        if self.fit_threshold is not None and UNKNOWN in support.class_names:
            raise RefusedError(
                422, f"No class may be called {UNKNOWN!r}, for that is an answer by itself."
            )
        x = tf.constant(support.support_x, self._dtype)
        state = _computed(self._adapt, support_x=x, support_y=tf.constant(support.support_y))
        task = Task(support.class_names, support.support_x, support.support_y, state)
        if self.fit_threshold is None:
            return task
        return dataclasses.replace(task, unknown=self._threshold(ways, min(task.shots)))

    def predict(self, task: Task, query_x: Array) -> dict[str, Any]:
        """Return what the learner says of queries, as JSON has it.

        Raises:
            RefusedError: If they do not fit the learner, or its answers are no numbers.
        """
        x = tf.constant(query_x, self._dtype)
        z = np.asarray(_computed(self._predict, query_x=x, **task.state)["predictions"], np.float64)
        if not np.isfinite(z).all():
            raise RefusedError(
                422, "The predictions are not finite: are the examples of the scale of training?"
            )
        labels = [task.class_names[i] for i in z.argmax(axis=1)]
        unsure = [False] * len(z) if task.unknown is None else task.unknown(z).tolist()
        shares = np.exp(z - z.max(axis=1, keepdims=True))
        return {
            "predictions": z.tolist(),
            "probabilities": (shares / shares.sum(axis=1, keepdims=True)).tolist(),
            "labels": [UNKNOWN if no else name for no, name in zip(unsure, labels, strict=True)],
            "likeliest": labels,
            "unknown": unsure,
            "nearest": self._nearest(task, x),
        }

    def packed_model(self, task: Task, kind: str) -> bytes:
        """Return a zip file of the folder that `tfmeta adapt` would write, for `tfmeta predict`.

        Keras and TensorFlow write to files only: the model is in a temporary folder for a moment,
        and nothing that was sent is.

        Raises:
            RefusedError: If the model cannot be written.
        """
        with self._learner_lock:
            model = self.learner.adapt(task.support_x, task.support_y)
            classifier = Classifier(
                model, task.class_names, self.images, self.learner.transductive, kind, task.unknown
            )
            try:
                with tempfile.TemporaryDirectory(prefix="tfmeta-") as folder:
                    classifier.save(Path(folder) / "adapted")
                    return _zipped(Path(folder) / "adapted")
            except OSError as error:
                raise RefusedError(
                    507, f"The model cannot be written to a temporary folder: {error}"
                ) from error

    def _threshold(self, ways: int, shots: int) -> Threshold:
        """Return the threshold for tasks of a size, which is found once."""
        assert self.fit_threshold is not None
        with self._learner_lock:
            if (ways, shots) not in self._thresholds:
                try:
                    self._thresholds[ways, shots] = self.fit_threshold(ways, shots)
                except ValueError as error:
                    raise RefusedError(422, str(error)) from error
                if len(self._thresholds) > _MOST_THRESHOLDS:
                    self._thresholds.popitem(last=False)
            return self._thresholds[ways, shots]

    def _traced_distances(self) -> tuple[Any, str | None]:
        """Return what compares queries with examples, or why nothing does."""
        embed = embedding_of(self.learner)
        if isinstance(embed, str):
            return None, embed
        example = self.learner.example
        one_task = tf.TensorSpec([1, None, *example.shape[1:]], example.dtype)

        def distances(support_x: Any, query_x: Any) -> Any:
            support, query = embed(support_x, query_x)
            return tf.sqrt(squared_euclidean(query, support)[0])

        traced = tf.function(distances, autograph=False)
        return traced.get_concrete_function(support_x=one_task, query_x=one_task), None

    def _nearest(self, task: Task, query_x: Any) -> list[list[dict[str, Any]]] | None:
        """Return the examples whose embeddings are nearest to that of each query."""
        if self._distances is None:
            return None
        support_x = tf.constant(task.support_x, self._dtype)[None]
        apart = _computed(self._distances, support_x=support_x, query_x=query_x[None]).numpy()
        first = np.argsort(apart, axis=1, kind="stable")[:, :NEAREST]
        return [
            [
                {
                    "example": int(i),
                    "label": task.class_names[task.support_y[i]],
                    "distance": float(row[i]),
                }
                for i in of
            ]
            for row, of in zip(apart, first, strict=True)
        ]


def _computed(function: Any, **given: Any) -> Any:
    """Return what a traced function gives, or the words of the checks inside."""
    try:
        return function(**given)
    except tf.errors.InvalidArgumentError as error:
        words = re.search(r"assertion failed: \[(.*)\]", error.message)
        if words is None:
            raise
        raise RefusedError(422, words[1].replace("] [", " ")) from error


def _zipped(folder: Path) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return file.getvalue()
