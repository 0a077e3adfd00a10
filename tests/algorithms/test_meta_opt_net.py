"""The support vector machine of MetaOptNet against scikit-learn's, SciPy's, and its own conditions.

What all heads have in common is in `test_heads.py`, the outer gradient among it.
"""

import warnings

import keras
import numpy as np
import pytest
import scipy.optimize
import sklearn.svm
import tensorflow as tf

import tfmeta
from tests.algorithms.test_heads import (
    INPUTS,
    LABELS,
    SIZE,
    TARGETS,
    WAYS,
    batches,
    compiled,
    dense,
    identity,
)
from tfmeta.algorithms.support_vectors import solution


def differences(logits):
    """Return what counts of scores: they may all be larger by the same."""
    return logits - np.mean(logits, -1, keepdims=True)


def of_scikit_learn(c, inputs):
    theirs = sklearn.svm.LinearSVC(
        multi_class="crammer_singer", fit_intercept=False, C=c, tol=1e-8, max_iter=10**5
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", sklearn.exceptions.ConvergenceWarning)
        return np.stack(
            [
                theirs.fit(x.astype("float64"), y).decision_function(q)
                for x, y, q in zip(*inputs.values(), strict=True)
            ]
        )


@pytest.mark.parametrize("c", [0.01, 0.1, 3.0])
def test_it_is_scikit_learns(c):
    found = tfmeta.MetaOptNet(identity(), c, scale=2.0).predict_on_batch(INPUTS)
    expected = of_scikit_learn(c, INPUTS)
    np.testing.assert_allclose(differences(found), 2 * differences(expected), atol=1e-4)


def features(ways, shots, queries, size, seed=0):
    """Return episodes of numbers as a network with ReLU and pooling makes them: many are zero."""
    rng = np.random.default_rng(seed)
    tasks = 2
    centres = rng.normal(size=(tasks, ways, size))
    labels = np.tile(np.repeat(np.arange(ways, dtype="int32"), shots), (tasks, 1))
    asked = np.tile(np.repeat(np.arange(ways, dtype="int32"), queries), (tasks, 1))

    def around(y):
        noise = 1.5 * rng.normal(size=(*y.shape, size))
        near = np.take_along_axis(centres, y[..., None], 1) + noise
        return np.maximum(near, 0).astype("float32")

    return {"support_x": around(labels), "support_y": labels, "query_x": around(asked)}


@pytest.mark.parametrize(
    ("ways", "shots", "size"), [(5, 1, 160), (5, 5, 160), (2, 3, 160), (6, 3, 8)]
)
def test_it_is_scikit_learns_on_features_of_networks(ways, shots, size):
    inputs = features(ways, shots, 3, size)
    model = keras.Sequential([keras.Input((size,)), keras.layers.Identity()])
    found = tfmeta.MetaOptNet(model).predict_on_batch(inputs)
    expected = of_scikit_learn(0.1, inputs)
    if ways == 2:  # of which scikit-learn returns the difference alone
        np.testing.assert_allclose(found[..., 1] - found[..., 0], expected, atol=1e-4)
    else:
        np.testing.assert_allclose(differences(found), differences(expected), atol=1e-4)


def test_the_primal_of_another_solver():
    """By SciPy, over weights and slacks: nothing of the dual is in it."""
    x, y, q = (part[0] for part in features(3, 2, 2, 4).values())
    n, ways, size = len(x), 3, x.shape[1]
    rows = [
        np.concatenate(
            [(np.outer(x[i], np.eye(ways)[y[i]] - np.eye(ways)[k])).ravel(), np.eye(n)[i]]
        )
        for i in range(n)
        for k in range(ways)
    ]
    margins = [float(k != y[i]) for i in range(n) for k in range(ways)]
    penalised = size * ways
    found = scipy.optimize.minimize(
        lambda v: v[:penalised] @ v[:penalised] / 2 + 0.5 * v[penalised:].sum(),
        np.concatenate([np.zeros(penalised), np.ones(n)]),
        jac=lambda v: np.concatenate([v[:penalised], np.full(n, 0.5)]),
        constraints={
            "type": "ineq",
            "fun": lambda v: np.array(rows) @ v - margins,
            "jac": lambda v: np.array(rows),
        },
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert found.success
    model = keras.Sequential([keras.Input((size,)), keras.layers.Identity()])
    ours = tfmeta.MetaOptNet(model, 0.5).predict_on_batch(
        {"support_x": x[None], "support_y": y[None], "query_x": q[None]}
    )[0]
    expected = q @ found.x[:penalised].reshape(size, ways)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize(("length", "c"), [(0.01, 0.1), (100.0, 0.1), (1.0, 1e4)])
def test_embeddings_of_any_length_and_examples_twice(length, c):
    """What holds of a solution: slopes are equal where α is free, and not less where it is not."""
    inputs = features(5, 3, 1, 20)
    z = length * inputs["support_x"].astype("float64")
    z[:, 1] = z[:, 0]
    gram = c * z @ z.transpose(0, 2, 1)
    gram += 1e-10 * (1 + gram.max()) * np.eye(gram.shape[1])
    targets = np.eye(5)[inputs["support_y"]]
    alpha, gap = solution(tf.constant(gram), tf.constant(targets), 40, 1e-9)
    assert np.max(gap) < 1e-9
    beta = targets - alpha.numpy()
    np.testing.assert_allclose(beta.sum(-1), 1, atol=1e-6)
    assert beta.min() > -1e-6
    slope = targets - gram @ alpha.numpy()
    excess = slope - slope.min(-1, keepdims=True)
    # The sum of such products is the gap of the two bounds.
    assert np.abs(beta * excess).sum((1, 2)).max() < 1e-5


def test_programs_of_all_kinds_are_solved():
    """Few numbers or many to an embedding, examples twice, classes apart or not, any C."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 4)
    targets = np.tile(np.eye(4)[labels], (8, 1, 1))
    solve = tf.function(solution, autograph=False)
    for i in range(24):
        size, apart = rng.choice([1, 2, 4, 8, 64]), rng.choice([0.0, 0.5, 3.0])
        z = apart * rng.normal(size=(8, 4, size))[:, labels] + rng.normal(size=(8, 16, size))
        z[:, 1] = z[:, 0] if i % 2 else z[:, 1]
        gram = rng.choice([1e-3, 0.1, 10.0, 1e3]) * z @ z.transpose(0, 2, 1)
        gram += 1e-10 * (1 + gram.max((1, 2), keepdims=True)) * np.eye(16)
        alpha, gap = solve(tf.constant(gram), tf.constant(targets), 40, 1e-9)
        assert np.all(gap <= 1e-9)
        assert np.isfinite(alpha).all()


def test_a_class_that_is_not_there_and_what_fills_up_change_nothing():
    inputs = features(3, 2, 1, 6)
    z = inputs["support_x"].astype("float64")
    targets = np.eye(3)[inputs["support_y"]]

    def solved(z, targets):
        gram = z @ z.transpose(0, 2, 1) + 1e-9 * np.eye(z.shape[1])
        return solution(tf.constant(gram), tf.constant(targets), 40, 1e-10)[0].numpy()

    alone = solved(z, targets)
    more = solved(np.pad(z, [(0, 0), (0, 2), (0, 0)]), np.pad(targets, [(0, 0), (0, 2), (0, 4)]))
    np.testing.assert_allclose(more[:, :6, :3], alone, atol=1e-6)
    assert not more[:, 6:].any()
    assert not more[:, :, 3:].any()


def test_a_program_that_is_not_solved_is_an_error():
    learner = compiled(tfmeta.MetaOptNet(identity(), steps=2))
    message = (
        r"The quadratic program of each task must be solved to `tolerance` within `steps` steps.*"
        r"Received: steps=2, tolerance=1e-09, a duality gap of 0\.5"
    )
    with pytest.raises(ValueError, match=message):
        learner.adapt(INPUTS["support_x"][0], LABELS[0])
    with pytest.raises(ValueError, match=message):
        learner.predict_on_batch(INPUTS)
    with pytest.raises(ValueError, match=message):
        learner.fit(batches(), steps_per_epoch=1, verbose=0)


def test_embeddings_that_are_not_finite_are_an_error():
    broken = keras.initializers.Constant(np.nan)
    model = keras.Sequential(
        [keras.Input((SIZE,)), keras.layers.Dense(3, kernel_initializer=broken)]
    )
    with pytest.raises(ValueError, match=r"`encoder` must return finite numbers"):
        tfmeta.MetaOptNet(model).adapt(INPUTS["support_x"][0], LABELS[0])


@pytest.mark.slow
def test_under_xla_it_is_the_same_and_what_is_not_solved_is_said_after_the_epoch():
    expected = tfmeta.MetaOptNet(identity()).predict_on_batch(INPUTS)
    learner = compiled(tfmeta.MetaOptNet(identity()), jit_compile=True)
    found = learner.predict_on_batch(INPUTS)[..., :WAYS]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    learner = compiled(tfmeta.MetaOptNet(dense(), steps=2), jit_compile=True)
    with pytest.raises(ValueError, match=r"`loss` must be finite\. Received: loss=nan in epoch 1"):
        learner.fit(INPUTS, TARGETS, batch_size=4, verbose=0)


def test_scale_is_learnt_or_not():
    for learn in (True, False):
        learner = compiled(tfmeta.MetaOptNet(dense(False), scale=3.0, learn_scale=learn))
        if learn:
            learner.train_on_batch(INPUTS, TARGETS)
            assert float(learner.gamma) != 3.0
        else:
            with pytest.raises(ValueError, match="must have something to train"):
                learner.train_on_batch(INPUTS, TARGETS)
