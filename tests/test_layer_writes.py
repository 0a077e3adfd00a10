"""What a layer does besides its call: what it writes is kept as Keras keeps it, and nothing else."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfmeta
from tfmeta.algorithms.maml import MAML
from tfmeta.functional import written_weights

TASKS, SUPPORT, QUERIES = 2, 5, 3
RATE = 0.2


def episodes(dtype="float64", *, classes=False):
    random = np.random.default_rng(0)
    x = random.normal(size=(TASKS, SUPPORT + QUERIES, 4)).astype(dtype)
    y = random.normal(size=(TASKS, SUPPORT + QUERIES, 2)).astype(dtype)
    if classes:
        y = np.tile(np.arange(SUPPORT + QUERIES) % 2, (TASKS, 1))
    inputs = {"support_x": x[:, :SUPPORT], "support_y": y[:, :SUPPORT], "query_x": x[:, SUPPORT:]}
    return inputs, y[:, SUPPORT:]


def spectral(dtype="float64", **kwargs):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((4,), dtype=dtype),
            layers.SpectralNormalization(
                layers.Dense(3, "tanh", dtype=dtype), 2, dtype=dtype, name="norm"
            ),
            layers.Dense(2, dtype=dtype, name="head"),
        ]
    )
    kernel = model.get_layer("norm").layer.kernel
    kernel.assign(3 * kernel)
    return model


def normalised(w, u, iterations=2):
    """What Keras's layer writes: the kernel, and the vector of its power iteration."""

    def unit(x):
        return x / np.sqrt(max(np.sum(x**2), 1e-12))

    for _ in range(iterations):
        v = unit(u @ w.T)
        u = unit(v @ w)
    return w / (v @ w @ u.T), u


class Twin:
    """The model `spectral` and its training in NumPy, variables as Keras has them."""

    def __init__(self, model):
        self.norm, self.head = model.get_layer("norm"), model.get_layer("head")
        self.w, self.b, self.v, self.c = (
            x.numpy()
            for x in (self.norm.layer.kernel, self.norm.layer.bias, *self.head.trainable_variables)
        )
        self.u = self.norm.vector_u.numpy()

    def gradients(self, x, y):
        """Normalise, and return the loss and its gradients at what is written."""
        self.w, self.u = normalised(self.w, self.u)
        z = np.tanh(x @ self.w + self.b)
        e = z @ self.v + self.c - y
        d = 2 * e / e.size
        h = d @ self.v.T * (1 - z**2)
        return np.mean(e**2), [x.T @ h, h.sum(0), z.T @ d, d.sum(0)]

    def step(self, gradients, rate=RATE):
        self.w, self.b, self.v, self.c = (
            p - rate * g
            for p, g in zip((self.w, self.b, self.v, self.c), gradients, strict=True)
        )


def learner_of(make, model, rate=0.0, **options):
    learner = make(model, RATE, 2, task_axis="loop", **options)
    learner.compile(keras.optimizers.SGD(rate), "mse")
    return learner


@pytest.mark.parametrize("options", [{}, {"recompute": True}, {"batch_norm": "support"}])
def test_first_order_steps_start_from_what_a_layer_writes(options):
    """FOMAML in NumPy: each forward writes, each step starts there, gradients are taken there."""
    model = spectral()
    twin = Twin(model)
    inputs, targets = episodes()
    loss = learner_of(tfmeta.FOMAML, model, 0.5, **options).train_on_batch(inputs, targets)
    losses, outer, kept = [], [], []
    for t in range(TASKS):
        if kept:
            twin.w, twin.b, twin.v, twin.c = kept
        for k in range(2):
            _, gradients = twin.gradients(inputs["support_x"][t], inputs["support_y"][t])
            if k == 0:
                kept = [twin.w, twin.b, twin.v, twin.c]
            twin.step(gradients)
        value, gradients = twin.gradients(inputs["query_x"][t], targets[t])
        losses.append(value)
        outer.append(gradients)
    twin.w, twin.b, twin.v, twin.c = kept
    twin.step([sum(g) / TASKS for g in zip(*outer, strict=True)], 0.5)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-9)
    expected = [twin.w, twin.b, twin.u, twin.v, twin.c]
    for variable, value in zip(model.weights, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-7, atol=1e-10)
