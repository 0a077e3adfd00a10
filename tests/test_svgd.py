"""Stein variational gradient descent against a readable twin, and on a posterior that is known."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfmeta.svgd import descent_direction


def kernel(particles, width):
    differences = particles[:, None] - particles[None]
    return np.exp(-(differences**2).sum(-1) / width)


def median_width(particles):
    m = len(particles)
    squares = [((a - b) ** 2).sum() for i, a in enumerate(particles) for b in particles[:i]]
    return (np.median(squares) or np.log(m)) / np.log(m)


def twin(gradients, particles, repulsion, width=None):
    """Return the direction for particles `[M, d]`, term by term."""
    m = len(particles)
    width = width or median_width(particles)
    k = kernel(particles, width)
    down = np.zeros_like(particles)
    for i in range(m):
        for j in range(m):
            of_kernel = -2 / width * (particles[j] - particles[i]) * k[j, i]
            down[i] += (k[j, i] * gradients[j] - repulsion * of_kernel) / m
    return down


def numeric_gradient(function, at):
    gradient = np.zeros_like(at)
    for i in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[i] = 1e-6
        gradient[i] = (function(at + step) - function(at - step)) / 2e-6
    return gradient


def laid_out(vectors, shapes, axes):
    """Return `[tasks, M, d]` as tensors of these shapes, with `tasks*M` in an axis of each."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    ends = np.cumsum([int(np.prod(s)) for s in shapes])[:-1]
    parts = np.split(flat, ends, axis=1)
    return [
        np.moveaxis(p.reshape(-1, *s), 0, a) for p, s, a in zip(parts, shapes, axes, strict=True)
    ]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 5),
    st.integers(1, 3),
    st.floats(0, 2),
    st.sampled_from([0.0, 1e3]),
    st.integers(0, 2**31),
)
def test_direction(number, tasks, repulsion, mean, seed):
    shapes, axes = [(2, 3, 4), (3,), ()], [2, 0, 0]
    rng = np.random.default_rng(seed)
    particles = mean + rng.normal(size=(tasks, number, 28))
    gradients = rng.normal(size=(tasks, number, 28))
    got = descent_direction(
        [tf.constant(x) for x in laid_out(gradients / number, shapes, axes)],
        [tf.constant(x) for x in laid_out(particles, shapes, axes)],
        axes,
        number,
        repulsion,
    )
    each = [twin(g, p, repulsion) for g, p in zip(gradients, particles, strict=True)]
    for one, other in zip(got, laid_out(np.stack(each), shapes, axes), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)


def test_one_particle_goes_down_its_gradient():
    gradients = [tf.random.normal([1, 3])]
    assert descent_direction(gradients, [tf.ones([1, 3])], [0], 1) is gradients


def test_particles_in_one_place_share_their_gradients():
    gradients = tf.constant([[0.5, 1.0], [1.5, 2.5]])
    (got,) = descent_direction([gradients], [tf.ones([2, 2])], [0], 2)
    np.testing.assert_allclose(got, [[2.0, 3.5], [2.0, 3.5]])


def test_the_derivative_takes_the_width_as_a_constant():
    rng = np.random.default_rng(0)
    particles, gradients, weights = (rng.normal(size=(4, 3)) for _ in range(3))
    x = tf.constant(particles)
    with tf.GradientTape() as tape:
        tape.watch(x)
        (down,) = descent_direction([tf.constant(gradients / 4)], [x], [0], 4)
        loss = tf.reduce_sum(down * weights)
    width = median_width(particles)

    def loss_at(p):
        return (twin(gradients, p, 1.0, width) * weights).sum()

    np.testing.assert_allclose(
        tape.gradient(loss, x), numeric_gradient(loss_at, particles), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("repulsion", [1.0, 0.0])
def test_particles_become_samples_of_a_normal_distribution(repulsion):
    """Without repulsion all end at its mode."""
    x = tf.constant(np.random.default_rng(0).normal(3.0, 0.3, size=(40, 1)))

    @tf.function
    def moved(x):
        # −log p = (x − 1)² / (2 · 0.5²)
        (down,) = descent_direction([(x - 1) / 0.25 / 40], [x], [0], 40, repulsion)
        return x - 0.05 * down

    for _ in range(1500):
        x = moved(x)
    assert abs(float(tf.reduce_mean(x)) - 1) < 0.02
    spread = float(tf.math.reduce_std(x))
    assert abs(spread - 0.5) < 0.05 if repulsion else spread < 1e-3
