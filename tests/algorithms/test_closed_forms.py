"""Reptile and implicit MAML against closed forms, and the gradients of the others of the family."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tests.algorithms.test_maml import (
    CENTRES,
    DIM,
    HESSIAN,
    START,
    Quadratic,
    assert_directional_derivatives,
    half_square,
    outer_gradient,
    vector_task,
)
from tests.rows import rows
from tfmeta import inner_optimizers
from tfmeta.differentiation import conjugate_gradients

RATE, PROXIMAL = 0.1, 2.0
ZEROS = np.zeros((3, 1, DIM))
QUADRATIC_TASKS = {"support_x": CENTRES, "support_y": ZEROS, "query_x": CENTRES}


def quadratic_model():
    model = keras.Sequential([keras.Input((DIM,)), Quadratic()])
    model.trainable_variables[0].assign(START)
    return model


def mean_over_tasks(function):
    return np.mean([function(START - centre[0]) for centre in CENTRES], axis=0)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_reptile_moves_towards_the_adapted_weights(float64, steps):
    """φ_K − θ = (Bᴷ − I)(θ−c); its negative is what the optimizer gets."""
    learner = tfmeta.Reptile(quadratic_model(), RATE, steps)
    learner.compile("sgd", loss=half_square)
    (gradient,) = outer_gradient(learner, QUADRATIC_TASKS, ZEROS)
    b_k = np.linalg.matrix_power(np.eye(DIM) - RATE * HESSIAN, steps)
    expected = mean_over_tasks(lambda offset: (b_k - np.eye(DIM)) @ offset)
    np.testing.assert_allclose(-gradient, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_implicit_gradient_after_some_steps(float64, steps):
    """φ_K = φ* + (I − α(A+λI))ᴷ (θ−φ*), and (I + A/λ)⁻¹ A (φ_K−c) is the gradient there."""
    learner = tfmeta.ImplicitMAML(quadratic_model(), RATE, steps, proximal=PROXIMAL, cg_steps=DIM)
    learner.compile("sgd", loss=half_square)
    (gradient,) = outer_gradient(learner, QUADRATIC_TASKS, ZEROS)

    eye = np.eye(DIM)
    inverse = np.linalg.inv(HESSIAN + PROXIMAL * eye)
    shrink = np.linalg.matrix_power(eye - RATE * (HESSIAN + PROXIMAL * eye), steps)

    def expected(offset):  # c is the origin, θ is `offset`
        solution = PROXIMAL * inverse @ offset
        reached = solution + shrink @ (offset - solution)
        return np.linalg.solve(eye + HESSIAN / PROXIMAL, HESSIAN @ reached)

    np.testing.assert_allclose(gradient, mean_over_tasks(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_implicit_gradient_at_the_solution(float64, steps):
    """φ* = (A+λI)⁻¹(Ac+λθ) and (I + A/λ)⁻¹ A (φ*−c), with a rule that arrives in one step."""

    class Newton(inner_optimizers.SGD):
        def update(self, gradients, slots, params, rates):
            matrix = tf.constant(np.linalg.inv(HESSIAN + PROXIMAL * np.eye(DIM)))
            step = [tf.linalg.matvec(matrix, g) for g in gradients]
            return [p - s for p, s in zip(params, step, strict=True)], slots

    learner = tfmeta.ImplicitMAML(
        quadratic_model(), 0.1, steps, proximal=PROXIMAL, cg_steps=DIM, inner_optimizer=Newton()
    )
    learner.compile("sgd", loss=half_square)
    (gradient,) = outer_gradient(learner, QUADRATIC_TASKS, ZEROS)

    eye = np.eye(DIM)
    solution = PROXIMAL * np.linalg.inv(HESSIAN + PROXIMAL * eye)
    factor = np.linalg.inv(eye + HESSIAN / PROXIMAL) @ HESSIAN @ solution
    np.testing.assert_allclose(
        gradient, mean_over_tasks(lambda offset: factor @ offset), rtol=1e-10, atol=1e-12
    )
    ((adapted,), _), _ = learner.adapt_task(
        tf.constant(CENTRES[0]), tf.constant(ZEROS[0]), training=False
    )
    centre = CENTRES[0, 0]
    np.testing.assert_allclose(adapted, centre + solution @ (START - centre), rtol=1e-10)


def test_conjugate_gradients():
    """Exact after as many steps as dimensions, the residual as it is, damping by hand."""
    b = [tf.constant(START), tf.constant(np.ones((2, 1)))]

    def matrix(v):
        return [tf.linalg.matvec(tf.constant(HESSIAN), v[0]), 3.0 * v[1]]

    x, residual = conjugate_gradients(matrix, b, DIM + 1)
    np.testing.assert_allclose(x[0], np.linalg.solve(HESSIAN, START), rtol=1e-10)
    np.testing.assert_allclose(x[1], np.full((2, 1), 1 / 3), rtol=1e-10)
    assert residual < 1e-8
    x, residual = conjugate_gradients(matrix, b, 2)
    left = [a - p for a, p in zip(b, matrix(x), strict=True)]
    norm = np.sqrt(sum(np.sum(np.square(v)) for v in left))
    np.testing.assert_allclose(residual, norm / np.sqrt(sum(np.sum(np.square(v)) for v in b)))
    x, residual = conjugate_gradients(matrix, [tf.zeros_like(v) for v in b], 3)
    assert not np.any(x[0])
    assert residual == 0


def test_damping_and_residual(float64):
    """((1+δ)I + A/λ) v = A(φ−c); the metric is the relative residual, zero when exact."""
    gradients, residuals = [], []
    for damping, cg_steps in ((0.0, DIM), (0.5, DIM), (0.0, 1)):
        learner = tfmeta.ImplicitMAML(
            quadratic_model(), RATE, 1, proximal=PROXIMAL, cg_steps=cg_steps, cg_damping=damping
        )
        learner.compile("sgd", loss=half_square)
        gradients.append(outer_gradient(learner, QUADRATIC_TASKS, ZEROS)[0])
        residuals.append(learner.get_metrics_result()["cg_residual"])
    eye = np.eye(DIM)
    right = (eye + HESSIAN / PROXIMAL) @ gradients[0]
    expected = np.linalg.solve(1.5 * eye + HESSIAN / PROXIMAL, right)
    np.testing.assert_allclose(gradients[1], expected, rtol=1e-8)
    assert residuals[0] < 1e-8
    assert residuals[1] < 1e-8
    assert residuals[2] > 1e-3


def doubled(task):
    inputs, targets = task
    return {k: v.astype(float) if v.dtype == np.float32 else v for k, v in inputs.items()}, targets


def network(outputs=3):
    """Convolution and batch normalisation; smooth, so that no difference crosses a kink."""
    layers = [
        keras.Input((6, 6, 1)),
        keras.layers.Conv2D(3, 3, 2),
        keras.layers.BatchNormalization(),
        keras.layers.Activation("tanh"),
        keras.layers.Flatten(),
    ]
    return keras.Sequential(layers + ([keras.layers.Dense(outputs)] if outputs else []))


def image_tasks(tasks=2):
    rng = np.random.default_rng(3)
    labels = np.tile(np.repeat(np.arange(3, dtype=np.int32), 2), (tasks, 1))
    x, q = rng.normal(size=(2, tasks, 6, 6, 6, 1))
    return {"support_x": x, "support_y": labels, "query_x": q}, labels


def plus_plus(**options):
    off = {"multi_step_loss": None, "learned_rates": None, "per_step_batch_norm": False}
    return tfmeta.MAMLPlusPlus(network(), 0.05, 2, **{**off, **options})


BY_DIFFERENCES = {
    "scalar rate": lambda: tfmeta.MAML(network(), 0.05, 2, learned_rates="scalar"),
    "no learned rate": lambda: tfmeta.MAML(network(), 0.05, 3),
    "rate by step": lambda: tfmeta.MAML(network(), [0.05, 0.1, 0.02], 3, learned_rates="step"),
    "rate by tensor": lambda: tfmeta.MAML(network(), 0.05, 2, learned_rates="tensor"),
    "rates given by step": lambda: tfmeta.MAML(network(), [0.05, 0.1, 0.02], 3),
    "learned rates of Adam": lambda: tfmeta.MAML(
        network(),
        inner_steps=2,
        inner_optimizer=inner_optimizers.Adam(0.01, epsilon=0.1),
        learned_rates="tensor_step",
    ),
    "MetaSGD": lambda: tfmeta.MetaSGD(network(), 0.05, 2),
    "joint": lambda: tfmeta.MAML(network(), 0.05, 2, joint_weight=0.7),
    "with_support": lambda: tfmeta.MAML(network(), 0.05, 2, batch_norm="with_support"),
    "ProtoMAML": lambda: tfmeta.ProtoMAML(network(None), 0.01, 2),
    "ProtoMAML-head": lambda: tfmeta.ProtoMAML(network(None), 0.01, 2, adapt_layers=()),
    "ProtoMAML-joint": lambda: tfmeta.ProtoMAML(
        network(None), 0.01, 2, joint_weight=0.5, batch_norm="support", learned_rates="weight"
    ),
    "MAMLPlusPlus": lambda: tfmeta.MAMLPlusPlus(network(), 0.05, 3, multi_step_loss="discounted"),
    "multi-step": lambda: plus_plus(multi_step_loss="annealed"),
    "discounted": lambda: plus_plus(multi_step_loss="discounted", batch_norm="support"),
    "per-step": lambda: plus_plus(per_step_batch_norm=True),
    "tensor_step": lambda: plus_plus(learned_rates="tensor_step"),
    "tolerance": lambda: plus_plus(tolerance=0.0),
}


# Kin of one that is checked each time.
SLOW = {
    *("scalar rate", "rates given by step", "MetaSGD", "joint", "ProtoMAML-head"),
    *("MAMLPlusPlus", "discounted", "tolerance", "ProtoMAML", "multi-step"),
}


@pytest.mark.parametrize("name", rows(BY_DIFFERENCES, SLOW))
def test_outer_gradient_by_finite_differences(float64, name):
    """K = 2 or 3; learned rates and per-step weights are among the variables."""
    keras.utils.set_random_seed(1)
    learner = BY_DIFFERENCES[name]()
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inputs, targets = image_tasks()
    learner.build({k: v.shape for k, v in inputs.items()})
    gradients = outer_gradient(learner, inputs, targets)
    tasks = [
        ({k: tf.constant(v[i]) for k, v in inputs.items()}, tf.constant(targets[i]))
        for i in range(2)
    ]
    options = {"multi_step": True} if getattr(learner, "multi_step_loss", None) else {}

    @tf.function
    def loss(*task):
        return learner.task_loss(*task, **options)[0]

    assert_directional_derivatives(
        learner.trainable_variables,
        gradients,
        lambda: sum(loss(*task) for task in tasks) / len(tasks),
    )


@pytest.mark.parametrize(
    "part", [pytest.param(None, marks=pytest.mark.slow), "dense", lambda v: v.name == "kernel"]
)
def test_implicit_gradient_by_finite_differences(float64, part):
    """Where inner loop and conjugate gradients have arrived, for weights left alone, too."""
    keras.utils.set_random_seed(1)
    keras.backend.clear_session()  # so that the first layer is "dense"
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(3)]
    )
    learner = tfmeta.ImplicitMAML(model, 0.2, 150, proximal=3.0, cg_steps=40, adapt_layers=part)
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inputs, targets = doubled(vector_task())
    gradients = outer_gradient(learner, inputs, targets)

    @tf.function
    def outer_loss():
        return learner.compute_loss(y=targets, y_pred=learner(inputs, training=True))

    assert all(np.any(g) for g in gradients)
    assert_directional_derivatives(learner.trainable_variables, gradients, outer_loss, step=1e-5)
