"""Call a Keras model with weights and state that are tensors, and change nothing in it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import keras
import tensorflow as tf

from tfmeta.layers import PerStepBatchNormalization, mean_along
from tfmeta.types import Params
from tfmeta.xla import in_xla

BatchNormMode = Literal["transductive", "support", "with_support", "running"]
BATCH_NORM_MODES = ("transductive", "support", "with_support", "running")
Statistics = Literal["batch", "stored", "training"]

# What the contexts below replace is seen by all threads.
TRACING = threading.RLock()


def batch_norm_layers(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Return the batch-normalisation layers of `model`, nested ones too, frozen ones not.

    A frozen layer (`trainable=False`) uses its stored statistics always, as everywhere in Keras.
    """
    layers = model._flatten_layers()
    return [x for x in layers if isinstance(x, keras.layers.BatchNormalization) and x.trainable]


def per_step_layers(model: keras.Model) -> list[PerStepBatchNormalization]:
    """Return the layers of `model` that have weights for each inner step."""
    layers = model._flatten_layers(include_self=False)
    return [x for x in layers if isinstance(x, PerStepBatchNormalization)]


def check_layers(model: keras.Model) -> None:
    """Raise a `ValueError` that names a layer whose writing has no meaning for tasks, if any.

    A recurrent layer with `stateful=True` has each batch go on where the one before ended, and
    batches of tasks are no series. Weights of float8 training are overwritten by their gradients,
    of which a mean over tasks or a step is none.
    """
    for layer in model._flatten_layers():
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
    model: keras.Model, choice: str | Sequence[str] | Callable[[Any], bool] | None
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
        layers = model._flatten_layers(include_self=False)
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
    with _changed(changes):
        yield


_ABSENT = object()


@contextlib.contextmanager
def _changed(changes: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Give objects other attributes while the context is open, and then those they had."""
    before = [vars(owner).get(name, _ABSENT) for owner, name, _ in changes]
    for owner, name, value in changes:
        # Keras would look at what is assigned to a layer.
        object.__setattr__(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(changes, before, strict=True):
            if value is _ABSENT:
                object.__delattr__(owner, name)
            else:
                object.__setattr__(owner, name, value)


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
    layers = [x for x in model._flatten_layers() if isinstance(x, kinds)]
    for layer in layers:
        if layer.use_cudnn is True:
            raise ValueError(
                "`model` must have recurrent layers with use_cudnn='auto' or False, because "
                f"cuDNN's have no second derivative. Received: layer {layer.name!r} with "
                "use_cudnn=True"
            )
    with _changed([(layer, "use_cudnn", False) for layer in layers]):
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Have a module of TensorFlow's another function of this name while the context is open."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextlib.contextmanager
def exact_moments() -> Iterator[None]:
    """Give `tf.nn.moments` its second derivative while the context is open.

    TensorFlow stops the gradient at the mean inside the variance. The first derivative is right
    all the same, for the term left out is zero; the second is not, and batch, layer and group
    normalisation of Keras all call it. Outer gradients through them were wrong by some percent.
    """
    with replaced(tf.nn, "moments", _moments):
        yield


def _moments(
    x: Any, axes: Any, shift: Any = None, keepdims: bool = False, name: str | None = None
) -> tuple[Any, Any]:
    del shift, name  # as in TensorFlow, where the shift has no effect any more
    mean = mean_along(x, axes)
    variance = mean_along(tf.math.squared_difference(x, mean), axes)
    return (mean, variance) if keepdims else (tf.squeeze(mean, axes), tf.squeeze(variance, axes))


@contextlib.contextmanager
def exact_resizing() -> Iterator[None]:
    """Give `tf.image.resize` its second derivative while the context is open.

    TensorFlow has none for most methods. For bilinear resizing it says so by a gradient that is
    `None`, so that outer gradients through `UpSampling2D` or `Resizing` were wrong by some percent.
    """
    with replaced(tf.image, "resize", functools.partial(_resize, tf.image.resize)):
        yield


def _resize(original: Any, images: Any, size: Any, *args: Any, **kwargs: Any) -> Any:
    images = tf.convert_to_tensor(images)
    if not images.dtype.is_floating:
        return original(images, size, *args, **kwargs)

    # Resizing is linear: its derivative is its transpose, and the derivative of that itself.
    def forward(x: Any) -> Any:
        return original(x, size, *args, **kwargs), transposed

    def backward(y: Any) -> Any:
        anywhere = tf.zeros_like(images)
        with tf.GradientTape() as tape:
            tape.watch(anywhere)
            out = original(anywhere, size, *args, **kwargs)
        return tape.gradient(out, anywhere, y), resized

    resized, transposed = tf.custom_gradient(forward), tf.custom_gradient(backward)
    return resized(images)


@contextlib.contextmanager
def exact_pooling() -> Iterator[None]:
    """Give max pooling an exact second derivative under XLA while the context is open.

    XLA's looks for the largest number of a window in numbers rounded to half of their bits, and so
    finds another where two are close: outer gradients were off by one to two percent. It has none
    in double precision.
    """
    with replaced(tf.nn, "max_pool", functools.partial(_max_pool, tf.nn.max_pool)):
        yield


def _max_pool(
    original: Any,
    x: Any,
    size: Any,
    strides: Any,
    padding: Any,
    data_format: str | None = None,
    **kwargs: Any,
) -> Any:
    space = x.shape[1:-1]
    channels_last = data_format is None or data_format.endswith("C")
    if not (in_xla() and channels_last and None not in space and padding in ("SAME", "VALID")):
        return original(x, size, strides, padding, data_format, **kwargs)
    sizes, steps = (
        [n] * len(space) if isinstance(n, int) else list(n)[-len(space) :] for n in (size, strides)
    )
    if padding == "SAME":
        needed = [
            max((-(-n // s) - 1) * s + k - n, 0)
            for n, k, s in zip(space, sizes, steps, strict=True)
        ]
        around = [[0, 0], *([n // 2, n - n // 2] for n in needed), [0, 0]]
        x = tf.pad(x, around, constant_values=x.dtype.min)
    out = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:-1], sizes, steps, strict=True)]

    def at(tap: tuple[int, ...]) -> Any:
        """Return of each window the number at one place."""
        cuts = (slice(t, t + (n - 1) * s + 1, s) for t, n, s in zip(tap, out, steps, strict=True))
        return x[(slice(None), *cuts)]

    first, *others = (at(tap) for tap in itertools.product(*map(range, sizes)))
    # Of equal numbers the first, as everywhere.
    return functools.reduce(lambda a, b: tf.where(b > a, b, a), others, first)


class NoDerivative(LookupError):  # noqa: N818
    """An operation lacks a derivative that is asked for; the message is its name."""


@contextlib.contextmanager
def once_differentiable_ctc() -> Iterator[None]:
    """Have CTC refuse a second derivative while the context is open.

    TensorFlow's is NaN in eager mode, and in a graph ends in errors about shapes or functions.
    """
    with replaced(tf.nn, "ctc_loss", functools.partial(_ctc_loss, tf.nn.ctc_loss)):
        yield


def _ctc_loss(original: Any, labels: Any, logits: Any, *args: Any, **kwargs: Any) -> Any:
    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def loss(logits: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(logits)
            losses = original(labels, logits, *args, **kwargs)
        return losses, lambda upstream: final(tape.gradient(losses, logits, upstream), logits)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def final(gradient: Any, logits: Any) -> Any:
        del logits  # what the gradient depends on

        def refuse(*_: Any) -> Any:
            raise NoDerivative("tf.nn.ctc_loss (keras.losses.CTC)")

        return tf.identity(gradient), refuse

    return loss(tf.convert_to_tensor(logits))


@contextlib.contextmanager
def exact_logsumexp() -> Iterator[None]:
    """Give `tf.math.reduce_logsumexp` of nothing but −∞ derivatives of 0 while the context is open.

    The second would be NaN. `keras.losses.Circle` takes it where a class has a single example.
    """
    with replaced(tf.math, "reduce_logsumexp", _logsumexp):
        yield


def _logsumexp(
    input_tensor: Any, axis: Any = None, keepdims: bool = False, name: str | None = None
) -> Any:
    del name
    x = tf.convert_to_tensor(input_tensor)
    most = tf.reduce_max(x, axis, keepdims=True)
    most = tf.stop_gradient(tf.where(tf.math.is_finite(most), most, tf.zeros_like(most)))
    total = tf.reduce_sum(tf.exp(x - most), axis, keepdims=True)
    some = total > 0
    result = tf.math.log(tf.where(some, total, tf.ones_like(total))) + most
    result = tf.where(some, result, tf.fill(tf.shape(result), tf.constant(-math.inf, x.dtype)))
    if keepdims:
        return result
    return tf.reshape(result, []) if axis is None else tf.squeeze(result, axis)


@contextlib.contextmanager
def exact_derivatives() -> Iterator[None]:
    """Make second derivatives exact, or have them refused, while the context is open."""
    with (
        exact_moments(),
        exact_resizing(),
        exact_pooling(),
        exact_logsumexp(),
        once_differentiable_ctc(),
    ):
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

    outputs: Any
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


def written_weights(model: keras.Model, example: Any, *, training: bool) -> list[bool]:
    """Return for each of `model.trainable_variables` whether a layer writes to it in its call.

    Args:
        model: A built model.
        example: What it takes, a nest of `KerasTensor`s.
        training: The Keras flag.
    """
    written: list[bool] = []

    def call(params: Params, state: Params, inputs: Any) -> Any:
        called = functional_call(model, params, state, inputs, training=training)
        written[:] = [a is not b for a, b in zip(called.params, params, strict=True)]
        return called.outputs

    specs = [
        [tf.TensorSpec(v.shape, v.dtype) for v in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    ]
    inputs = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), _plain(example))
    tf.function(call, autograph=False).get_concrete_function(*specs, inputs)
    return written


def _plain(nest: Any) -> Any:
    """Return a nest without the containers that Keras makes of attributes of models."""
    if isinstance(nest, dict):
        return {key: _plain(value) for key, value in nest.items()}
    if isinstance(nest, list):
        return [_plain(value) for value in nest]
    return tuple(map(_plain, nest)) if isinstance(nest, tuple) else nest
