"""Call a Keras model with weights and state that are tensors, and change nothing in it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import keras
import tensorflow as tf

from tfmeta.choices import BATCH_NORM_MODES as BATCH_NORM_MODES
from tfmeta.foreign.derivatives import TRACING, changed, exact_derivatives
from tfmeta.foreign.of_keras import layers_of
from tfmeta.layers import PerStepBatchNormalization
from tfmeta.types import Nest, Params

BatchNormMode = Literal["transductive", "support", "with_support", "running"]
Statistics = Literal["batch", "stored", "training"]


def batch_norm_layers(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Return the batch-normalisation layers of `model`, nested ones too, frozen ones not.

    A frozen layer (`trainable=False`) uses its stored statistics always, as everywhere in Keras.
    """
    layers = layers_of(model)
    return [x for x in layers if isinstance(x, keras.layers.BatchNormalization) and x.trainable]


def per_step_layers(model: keras.Model) -> list[PerStepBatchNormalization]:
    """Return the layers of `model` that have weights for each inner step."""
    layers = layers_of(model, include_self=False)
    return [x for x in layers if isinstance(x, PerStepBatchNormalization)]


def check_layers(model: keras.Model) -> None:
    """Raise a `ValueError` that names a layer whose writing has no meaning for tasks, if any.

    A recurrent layer with `stateful=True` has each batch go on where the one before ended, and
    batches of tasks are no series. Weights of float8 training are overwritten by their gradients,
    of which a mean over tasks or a step is none.
    """
    for layer in layers_of(model):
        if getattr(layer, "stateful", False):
            raise ValueError(
                "`model` must have recurrent layers with stateful=False: examples of a task, and "
                "tasks, do not go on where those before them ended. Received: layer "
                f"{layer.name!r} with stateful=True"
            )
    for variable in model.trainable_variables:
        if getattr(variable, "overwrite_with_gradient", False):
            raise ValueError(
                "`model` must not be quantised to float8, whose scales are overwritten by "
                f"gradients; quantise what `adapt` returns. Received: {variable.path!r}"
            )


def chosen_variables(
    model: keras.Model, choice: str | Sequence[str] | Callable[[keras.Variable], bool] | None
) -> list[bool]:
    """Return for each of `model.trainable_variables` whether it is chosen.

    Args:
        model: A built model.
        choice: Names of layers, or paths of variables, of which the end is enough; a function of
            a variable; `None` for all but those of per-step batch normalisation.

    Raises:
        ValueError: If a name is unknown, or nothing is chosen.
    """
    variables = model.trainable_variables
    if choice is None:
        outer = {id(v) for layer in per_step_layers(model) for v in layer.trainable_variables}
        chosen = [id(v) not in outer for v in variables]
    elif callable(choice):
        chosen = [bool(choice(v)) for v in variables]
    else:
        layers = layers_of(model, include_self=False)
        names = [choice] if isinstance(choice, str) else list(choice)
        owned = []
        for name in names:
            found = [v for layer in layers if layer.name == name for v in layer.trainable_variables]
            found += [v for v in variables if f"/{v.path}".endswith(f"/{name}")]
            if not found:
                known = sorted({layer.name for layer in layers if layer.trainable_variables})
                raise ValueError(
                    "`adapt_layers` must name layers with trainable weights, or the paths of such "
                    f"weights. Received: {name!r}; the layers are {', '.join(known)}"
                )
            owned += found
        ids = {id(v) for v in owned}
        chosen = [id(v) in ids for v in variables]
    if not any(chosen):
        raise ValueError(
            f"`adapt_layers` must choose at least one weight. Received: adapt_layers={choice!r}"
        )
    return chosen


@contextlib.contextmanager
def batch_norm_uses(model: keras.Model, statistics: Statistics, step: int = -1) -> Iterator[None]:
    """Choose which statistics batch normalisation uses while the context is open.

    Keras has one `training` flag for all layers, so that dropout could not be off while batch
    normalisation uses the batch at hand, which is how MAML was published. Replacing the layers
    would exclude subclassed models; instead the layers see another flag, and in `"batch"` they
    store the plain batch statistics (momentum 0), for as long as this context is open.

    Args:
        model: The model.
        statistics: `"batch"`: those of the batch at hand; `"stored"`: the moving ones;
            `"training"`: as Keras does, by the `training` argument.
        step: The inner step, for layers with statistics and weights for each.
    """
    changes: list[tuple[Any, str, Any]] = [(x, "step", step) for x in per_step_layers(model)]
    for layer in [] if statistics == "training" else batch_norm_layers(model):
        call = functools.partial(_call_with_training, layer.call, statistics == "batch")
        changes += [(layer, "call", call), (layer, "momentum", 0.0)]
    with changed(changes):
        yield


def _call_with_training(call: Any, training: bool, /, *args: Any, **kwargs: Any) -> Any:
    return call(*args, **{**kwargs, "training": training})


@contextlib.contextmanager
def plain_recurrence(model: keras.Model) -> Iterator[None]:
    """Compute LSTM and GRU step by step while the context is open.

    cuDNN's implementation, which Keras takes on a GPU, has no second derivative.

    Raises:
        ValueError: If a layer was made with `use_cudnn=True`, which leaves no choice.
    """
    kinds = (keras.layers.LSTM, keras.layers.GRU)
    layers = [x for x in layers_of(model) if isinstance(x, kinds)]
    for layer in layers:
        if layer.use_cudnn is True:
            raise ValueError(
                "`model` must have recurrent layers with use_cudnn='auto' or False, because "
                f"cuDNN's have no second derivative. Received: layer {layer.name!r} with "
                "use_cudnn=True"
            )
    with changed([(layer, "use_cudnn", False) for layer in layers]):
        yield


class Called(NamedTuple):
    """What a model returned.

    Attributes:
        outputs: Its predictions.
        state: Its new non-trainable state.
        activity_losses: Regularisation losses of activities.
        params: Its trainable weights: the tensors that it was called with, but for those that a
            layer has written to.
    """

    outputs: Nest
    state: Params
    activity_losses: list[Any]
    params: Params


class _Scope(keras.StatelessScope):
    """A scope in which no gradient goes through what a layer writes to its trainable weights.

    Neither does one in Keras: an assignment has no derivative, and the gradient at a variable is
    that at its value when it was read.
    """

    def add_update(self, update: tuple[Any, Any]) -> None:
        """Store what is written."""
        variable, value = update
        if variable.trainable:
            value = _written(self.get_current_value(variable), value)
        super().add_update((variable, value))


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _written(before: Any, value: Any) -> Any:
    del before  # whose gradient is that of the value
    return tf.identity(value), lambda upstream: (upstream, None)


def functional_call(
    model: keras.Model,
    params: Params,
    state: Params,
    inputs: Any,
    *,
    training: bool,
    statistics: Statistics = "training",
    step: int = -1,
) -> Called:
    """Compute `f(inputs; params, state)` as a pure function.

    Args:
        model: A built model.
        params: Tensors in the order of `model.trainable_variables`.
        state: Tensors in the order of `model.non_trainable_variables`: normalisation statistics,
            states of random seeds. Pass the returned state on to the next call, or dropout
            repeats its mask.
        inputs: The model's inputs.
        training: The Keras flag, for dropout and the like.
        statistics: See `batch_norm_uses`.
        step: The inner step, for layers with weights for each.
    """
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    mapping = list(zip(variables, [*params, *state], strict=True))
    # `stateless_call` would hand `training` to a `call` that does not take it; `__call__` does not.
    with (
        TRACING,
        exact_derivatives(),
        plain_recurrence(model),
        batch_norm_uses(model, statistics, step),
    ):
        with _Scope(state_mapping=mapping, collect_losses=True) as scope:
            outputs = model(inputs, training=training)
        new_state, new_params = (
            [scope.get_current_value(v) for v in of]
            for of in (model.non_trainable_variables, model.trainable_variables)
        )
    return Called(outputs, new_state, list(scope.losses), new_params)


def written_weights(model: keras.Model, example: Nest, *, training: bool) -> list[bool]:
    """Return for each of `model.trainable_variables` whether a layer writes to it in its call.

    Args:
        model: A built model.
        example: What it takes, a nest of `KerasTensor`s.
        training: The Keras flag.
    """
    written: list[bool] = []

    def call(params: Params, state: Params, inputs: Nest) -> Nest:
        called = functional_call(model, params, state, inputs, training=training)
        written[:] = [a is not b for a, b in zip(called.params, params, strict=True)]
        return called.outputs

    specs = [
        [tf.TensorSpec(v.shape, v.dtype) for v in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    ]
    inputs = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), plain(example))
    tf.function(call, autograph=False).get_concrete_function(*specs, inputs)
    return written


def plain(nest: Any) -> Any:
    """Return a nest without the containers that Keras makes of attributes of models."""
    if isinstance(nest, dict):
        return {key: plain(value) for key, value in nest.items()}
    if isinstance(nest, list):
        return [plain(value) for value in nest]
    return tuple(map(plain, nest)) if isinstance(nest, tuple) else nest
