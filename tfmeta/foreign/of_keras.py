"""Private names of Keras: what each is needed for, and why no public one will do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from tfmeta.types import Tensor

# What Keras notes on a tensor object, for losses and metrics to find: the mask of its time steps,
# and the logits that an activation was given. There is no public way to tell either.
MASK = "_keras_mask"
LOGITS = "_keras_logits"

# The argument by which `fit` tells `evaluate` that it is called from within.
FROM_WITHIN_FIT = "_use_cached_eval_dataset"

# Where a callback has its model.
OF_CALLBACKS = ("_model", "params")


def layers_of(model: keras.Model, **how: Any) -> list[Any]:
    """Return a model with all layers in it, and in these. `layers` has those of the first level.

    Args:
        model: A model or a layer.
        **how: `include_self` and `recursive`.
    """
    return list(model._flatten_layers(**how))


def own_weights(layer: keras.Layer) -> list[Any]:
    """Return the trainable weights of a layer by itself, without those of layers in it."""
    return list(layer._trainable_variables)


def kernel_of(layer: keras.Layer) -> Any:
    """Return the variable of a kernel; where there is LoRA, `kernel` is a sum."""
    return layer._kernel


def merge_function_of(layer: keras.Layer) -> Any:
    """Return what a merging layer, as `Add`, computes of inputs whose shapes need no matching."""
    return layer._merge_function


def arguments_of_loss(loss: Any) -> dict[str, Any]:
    """Return the arguments of a loss that its configuration may lack, as `axis`."""
    return dict(getattr(loss, "_fn_kwargs", {}))


def graph_of(model: keras.Model) -> Any:
    """Return the Functional model that a sequential one is made into, or a functional one itself.

    `None` for others: whether a model is Functional cannot be asked in public.
    """
    if isinstance(model, keras.Sequential):
        return getattr(model, "_functional", None)
    return model if hasattr(model, "_inputs_struct") else None


def nodes_of(graph: Any) -> list[Any]:
    """Return the calls of layers that a Functional model is made of."""
    return [node for nodes in graph._nodes_by_depth.values() for node in nodes]


def maker_of(tensor: Any) -> tuple[Any, Any, int]:
    """Return the layer that made a symbolic tensor, the inputs of that call, and which output."""
    maker, call, place = tensor._keras_history
    return maker, maker._inbound_nodes[call].input_tensors, place


def run_through_graph(model: keras.Model, inputs: Any, operation: Any) -> Any:
    """Compute a Functional model with other operations in the place of its layers'.

    Args:
        model: The model.
        inputs: Its inputs.
        operation: A layer to what is called in its place.
    """
    return model._run_through_graph(inputs, operation_fn=operation)


def loss_tracker_of(model: keras.Model) -> Any:
    """Return the metric `loss`, which a step of one's own has to update."""
    return model._loss_tracker


def loss_metrics_of(model: keras.Model) -> list[Any]:
    """Return the metrics that Keras has of the losses of several outputs."""
    return list(model._compile_loss.metrics)


def additional_loss(model: keras.Model, loss: Tensor) -> Any:
    """Return the loss of a regularizer as Keras adds it to the compiled loss."""
    return model._aggregate_additional_loss(loss)


def build_metrics(model: keras.Model, labels: Tensor, predictions: Tensor) -> None:
    """Create the variables of compiled metrics, which Keras leaves to the first step.

    Args:
        model: A compiled model.
        labels: Symbolic labels.
        predictions: Symbolic predictions.
    """
    model._compile_metrics.build(labels, predictions)


def metrics_are_built(model: keras.Model) -> bool:
    """Return whether there is no metric whose variables have yet to be created."""
    metrics = model._compile_metrics
    return metrics is None or bool(metrics.built)


def begin_at(model: keras.Model, epoch: int | None) -> None:
    """Have the training that begins go on at an epoch, as Keras's `BackupAndRestore` does."""
    model._initial_epoch = epoch


def forget_validation_data(model: keras.Model) -> None:
    """Have `fit` not go on with the validation data of a call that failed."""
    model._eval_epoch_iterator = None


def of_tracking(name: str) -> bool:
    """Return whether an attribute is one in which TensorFlow and Keras keep track of parts."""
    return name.startswith("_self_")


@contextlib.contextmanager
def gradients_are_summed(optimizer: Any) -> Iterator[None]:
    """Let an optimizer apply gradients that are the sum over all replicas already.

    Keras sums them after the clipping of norms, which is then one of each replica's gradients, and
    has no argument to leave it out.
    """
    optimizers = [optimizer, getattr(optimizer, "inner_optimizer", optimizer)]
    for each in optimizers:
        each.__dict__["_all_reduce_sum_gradients"] = lambda pairs: pairs
    try:
        yield
    finally:
        # Another replica of this process may have done it.
        for each in optimizers:
            each.__dict__.pop("_all_reduce_sum_gradients", None)


class OpenModel(keras.Model):
    """A Keras model whose private steps of `fit` and of saving have public names to override."""

    def first_batch(self, iterator: Any, data_batch: Any) -> tuple[Any, Any]:
        """Return what the model is built from before the first step: an iterator, or a batch."""
        return iterator, data_batch

    def regularization(self, loss: Tensor) -> Any:
        """Return the loss of a regularizer as it is added to the compiled loss."""
        return loss

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        iterator, data_batch = self.first_batch(iterator, data_batch)
        super()._maybe_symbolic_build(iterator, data_batch)

    def _aggregate_additional_loss(self, loss: Tensor) -> Any:
        return self.regularization(super()._aggregate_additional_loss(loss))

    @property
    def _default_save_signature(self) -> None:
        # Keras would trace a learner inside an adapted model, with inputs that it does not take.
        return None


class OpenBatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer, whose computation of masked and renormalised statistics is not public."""

    def masked_moments(self, x: Any, mask: Tensor) -> tuple[Any, Any]:
        """Return mean and variance of what a mask leaves."""
        mean, variance = self._moments(x, mask)
        return mean, variance

    def renormalized(
        self, mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor, dtype: Any
    ) -> tuple[Any, Any, Any, Any]:
        """Return statistics, γ and β of batch renormalisation."""
        r, d, mean, variance = self._renorm_correction_and_moments(mean, variance)
        gamma, beta = self._compose_transforms(r, d, gamma, beta, dtype)
        return mean, variance, gamma, beta
