"""`TaskModel`: a learner that has adapted to one task, where no model can be copied for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfmeta.copies import resources_of
from tfmeta.functional import plain
from tfmeta.kernels import avoided
from tfmeta.types import Nest


@keras.saving.register_keras_serializable(package="tfmeta")
class TaskModel(keras.Model):
    """A learner that has adapted to one task: its `predict_task` as call, at weights of its own.

    They are the state, and all that the learner's variables are now. It calls what the learner
    calls, which may be anything, and is not reached by what becomes of the learner's variables.

    Args:
        learner: A built `tfmeta.MetaLearner`.
        state: What its `adapt_task` returned.
        **kwargs: `name` and `dtype`.
    """

    def __init__(self, learner: Any, state: Nest, **kwargs: Any) -> None:
        defaults = {"name": f"{learner.name}_task", "dtype": learner.variable_dtype}
        super().__init__(**{**defaults, **kwargs})
        variables = learner.variables
        # Within a function, where Keras does not count the variables as this model's.
        self._replaced: Callable[[], tuple[Any, Any]] = lambda: (learner, variables)
        self._weights_of_learner = [self._weight(v.path, v) for v in variables]
        self._structure = tf.nest.map_structure(lambda _: None, state)
        self._values = [self._weight(f"state_{i}", x) for i, x in enumerate(tf.nest.flatten(state))]
        self._tables = tf.Module()  # tracked by TensorFlow, for exports
        self._tables.all = resources_of(learner)
        self.example, self.transductive = learner.example, learner.transductive

    def call(self, inputs: Nest) -> Nest:
        """Return `[n, outputs]` for `[n, ...]`."""
        learner, variables = self._replaced()
        state = tf.nest.pack_sequence_as(
            self._structure, [tf.convert_to_tensor(v) for v in self._values]
        )
        own = list(zip(variables, self._weights_of_learner, strict=True))
        # Kernels are avoided, for it may be exported to where there is no tfmeta.
        with avoided(), keras.StatelessScope(state_mapping=own):
            return learner.predict_task(state, inputs, training=False)

    def by(self) -> Any:
        """Return the learner that has adapted, whose weights may be others by now."""
        return self._replaced()[0]

    def changed(self, change: Callable[[Any, Nest], Nest]) -> TaskModel:
        """Return a new model of another state, with the same weights.

        Args:
            change: Of the learner, which computes with this model's weights, and of the state.
        """
        learner, variables = self._replaced()
        state = tf.nest.pack_sequence_as(
            self._structure, [tf.convert_to_tensor(v) for v in self._values]
        )
        own = list(zip(variables, self._weights_of_learner, strict=True))
        with keras.StatelessScope(state_mapping=own):
            state = change(learner, state)
        new = TaskModel(learner, state)
        # The learner's own may have been trained since.
        for theirs, weight in zip(new._weights_of_learner, self._weights_of_learner, strict=True):
            theirs.assign(weight)
        new(new.example)
        return new

    def get_config(self) -> dict[str, Any]:
        """Return the learner and the shapes of its state, for Keras's saving."""
        learner = keras.saving.serialize_keras_object(self._replaced()[0])
        learner.pop("compile_config", None)  # what adapts to nothing more needs no loss
        shapes = [{"shape": tuple(v.shape), "dtype": v.dtype} for v in self._values]
        return {
            **super().get_config(),
            "learner": learner,
            "structure": tf.nest.pack_sequence_as(self._structure, range(len(shapes))),
            "shapes": shapes,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TaskModel:
        """Make a model, its weights of the state zero, from what `get_config` returned."""
        config = dict(config)
        learner = keras.saving.deserialize_keras_object(config.pop("learner"))
        shapes = [tf.zeros(x["shape"], x["dtype"]) for x in config.pop("shapes")]
        structure = config.pop("structure")
        state = tf.nest.map_structure(lambda i: shapes[i], structure)
        model = cls(learner, state, **config)
        model(plain(model.example))
        return model

    def get_build_config(self) -> None:
        """Return none, for `from_config` has built the model."""

    def _weight(self, name: str, value: Any) -> Any:
        value = tf.convert_to_tensor(value)
        weight = self.add_weight(
            shape=value.shape,
            dtype=value.dtype.name,
            trainable=False,
            autocast=False,
            name=name.replace("/", "_"),
        )
        weight.assign(value)
        return weight
