"""Each part of MAML++ alone, against a linear regression worked out in NumPy, and all off."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tests.algorithms.test_maml import outer_gradient
from tests.learners import episodes
from tests.learners import network as conv_network
from tfmeta.layers import PerStepBatchNormalization, per_step_batch_norm

OFF = {"multi_step_loss": None, "learned_rates": None, "per_step_batch_norm": False}
STEPS, RATE, FEATURES, EXAMPLES = 3, 0.1, 4, 6
RNG = np.random.default_rng(11)
X, Q = RNG.normal(size=(2, EXAMPLES, FEATURES))
X_Y, Q_Y = RNG.normal(size=(2, EXAMPLES, 1))
START = RNG.normal(size=(FEATURES, 1))
INPUTS = {"support_x": X[None], "support_y": X_Y[None], "query_x": Q[None]}
TARGETS = Q_Y[None]


def loss(w, x, y):
    return np.mean((x @ w - y) ** 2)


def slope(w, x, y):
    return 2 / len(x) * x.T @ (x @ w - y)


def inner_path(rates):
    """φ_0 … φ_K of gradient descent on the support set, by hand."""
    path = [START]
    for rate in rates:
        path.append(path[-1] - rate * slope(path[-1], X, X_Y))
    return path


def shrink(rate):
    """∂φ_{k+1}/∂φ_k = I − αH, for H does not change."""
    return np.eye(FEATURES) - rate * 2 / EXAMPLES * X.T @ X


def linear(**options):
    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([START])
    learner = tfmeta.MAMLPlusPlus(model, RATE, STEPS, **{**OFF, **options})
    learner.compile("sgd", "mean_squared_error")
    return learner


@pytest.mark.parametrize("epoch", [0, 1, 3, 4, 9])
def test_annealed_loss(float64, epoch):
    """Loss and gradient with the paper's weights, in E = 4 epochs and behind them."""
    learner = linear(multi_step_loss="annealed", multi_step_epochs=4)
    learner.epoch.assign(epoch)
    weights = np.zeros(STEPS)
    if epoch < 4:
        share = epoch / (STEPS * 4)
        weights[:-1] = max(1 / STEPS - share, 0.03 / STEPS)
        last = min(1 / STEPS + share * (STEPS - 1), 1 - 0.03 * (STEPS - 1) / STEPS)
        weights[-1] = last
    else:
        weights[-1] = 1
    np.testing.assert_allclose(learner.step_weights(), weights, rtol=1e-12)
    np.testing.assert_allclose(weights.sum(), 1)
    check_multi_step(learner, weights)


def test_annealed_weights_have_a_floor(float64):
    """0.03/K for the steps before the last, and no more than the rest for it."""
    learner = linear(multi_step_loss="annealed", multi_step_epochs=100)
    learner.epoch.assign(99)
    np.testing.assert_allclose(learner.step_weights(), [0.01, 0.01, 0.98], rtol=1e-12)


def test_discounted_loss(float64):
    learner = linear(multi_step_loss="discounted", discount=0.5)
    check_multi_step(learner, [0.5, 0.25, 0.125])


def check_multi_step(learner, weights):
    path = inner_path([RATE] * STEPS)[1:]
    (gradient,) = outer_gradient(learner, INPUTS, TARGETS)
    b = shrink(RATE)
    expected = sum(
        w * np.linalg.matrix_power(b, i + 1) @ slope(phi, Q, Q_Y)
        for i, (w, phi) in enumerate(zip(weights, path, strict=True))
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)
    total = sum(w * loss(phi, Q, Q_Y) for w, phi in zip(weights, path, strict=True))
    np.testing.assert_allclose(learner.train_on_batch(INPUTS, TARGETS), total, rtol=1e-6)
    # Evaluation scores the last step, whatever the training does.
    learner.compile("sgd", "mean_squared_error")
    learner.model.set_weights([START])
    np.testing.assert_allclose(
        learner.test_on_batch(INPUTS, TARGETS), loss(path[-1], Q, Q_Y), rtol=1e-6
    )


def test_order_of_the_derivative(float64):
    """First order up to the given epoch, then second; nothing is traced anew."""
    learner = linear(first_order_epochs=2)
    last = inner_path([RATE] * STEPS)[-1]
    first = slope(last, Q, Q_Y)
    second = np.linalg.matrix_power(shrink(RATE), STEPS) @ first
    for epoch, expected in ((0, first), (1, first), (2, second), (7, second)):
        learner.epoch.assign(epoch)
        (gradient,) = outer_gradient(learner, INPUTS, TARGETS)
        np.testing.assert_allclose(gradient, expected, rtol=1e-10)


@pytest.mark.parametrize("kind", ["scalar", "step", "tensor", "tensor_step", "weight"])
def test_learned_rates(float64, kind):
    """`∂L/∂α_k = −∇L_Q(φ_K)ᵀ (I−αH)^{K−1−k} ∇L_S(φ_k)`, summed over what shares a rate."""
    learner = linear(learned_rates=kind)
    learner.build({name: x.shape for name, x in INPUTS.items()})
    names = [v.name for v in learner.trainable_variables]
    gradients = dict(zip(names, outer_gradient(learner, INPUTS, TARGETS), strict=True))
    path = inner_path([RATE] * STEPS)
    single = []
    for k in range(STEPS):
        behind = np.linalg.matrix_power(shrink(RATE), STEPS - 1 - k)
        single.append(-(behind @ slope(path[-1], Q, Q_Y)) * slope(path[k], X, X_Y))
    by_step = np.array([s.sum() for s in single])
    expected = {
        "scalar": by_step.sum(),
        "step": by_step,
        "tensor": by_step.sum(),
        "tensor_step": by_step,
        "weight": np.sum(single, axis=0),
    }
    np.testing.assert_allclose(gradients["rate_0"], expected[kind], rtol=1e-9)
    np.testing.assert_allclose(
        gradients["kernel"],
        np.linalg.matrix_power(shrink(RATE), STEPS) @ slope(path[-1], Q, Q_Y),
        rtol=1e-9,
    )


def test_rates_by_step(float64):
    """Given or learnt from, each step has its own."""
    rates = [0.3, 0.1, 0.05]
    path = inner_path(rates)
    for kind in (None, "step", "tensor_step"):
        model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(1, use_bias=False)])
        model.set_weights([START])
        learner = tfmeta.MAML(model, rates, STEPS, learned_rates=kind)
        learner.compile("sgd", "mean_squared_error")
        np.testing.assert_allclose(learner.adapt(X, X_Y).get_weights()[0], path[-1], rtol=1e-6)


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.2, 1e9])
def test_adaptive_number_of_steps(float64, tolerance):
    """A task stops at the step whose loss has not fallen by the tolerance; weights stay there."""
    learner = linear(tolerance=tolerance)
    path = inner_path([RATE] * STEPS)
    used = 1
    for k in range(1, STEPS):
        if loss(path[k - 1], X, X_Y) - loss(path[k], X, X_Y) < tolerance:
            break
        used += 1
    (gradient,) = outer_gradient(learner, INPUTS, TARGETS)
    expected = np.linalg.matrix_power(shrink(RATE), used) @ slope(path[used], Q, Q_Y)
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)
    assert learner.get_metrics_result()["inner_steps"] == used
    np.testing.assert_allclose(learner.adapt(X, X_Y).get_weights()[0], path[used], rtol=1e-6)
    assert {0.0: used == 3, 0.05: True, 0.2: True, 1e9: used == 1}[tolerance]


def test_each_task_has_its_own_number_of_steps():
    """One that starts at its minimum stops at once, one beside it goes on."""
    learner = linear(tolerance=1e-3)
    solved = X @ START
    inputs = {
        "support_x": np.stack([X, X]).astype("float32"),
        "support_y": np.stack([solved, X_Y]).astype("float32"),
        "query_x": np.stack([Q, Q]).astype("float32"),
    }
    targets = np.stack([Q_Y, Q_Y]).astype("float32")
    logs = learner.train_on_batch(inputs, targets, return_dict=True)
    assert logs["inner_steps"] == 2.0  # the mean of 1 and 3


def test_clipping_the_outer_gradient(float64):
    learner = linear(outer_clip_norm=0.1)
    learner.compile(keras.optimizers.SGD(1.0), "mean_squared_error")
    learner.train_on_batch(INPUTS, TARGETS)
    moved = learner.model.get_weights()[0] - START
    plain = outer_gradient(linear(), INPUTS, TARGETS)[0]
    np.testing.assert_allclose(moved, -0.1 * plain / np.linalg.norm(plain), rtol=1e-6)


class Rates(keras.callbacks.Callback):
    """Write down the outer rate and the annealing epoch of each epoch."""

    def __init__(self):
        super().__init__()
        self.rates, self.epochs = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.rates.append(float(self.model.optimizer.learning_rate))
        self.epochs.append(int(self.model.epoch))


def epoch_data():
    inputs = {k: v.astype("float32") for k, v in INPUTS.items()}
    return tf.data.Dataset.from_tensors((inputs, TARGETS.astype("float32"))).repeat()


def test_cosine_annealing_follows_the_epoch(tmp_path):
    """The formula; and after saving and loading in the middle it goes on as if nothing was."""
    expected = [1e-4 + (1e-2 - 1e-4) * (1 + np.cos(np.pi * min(e / 4, 1))) / 2 for e in range(6)]

    def made():
        learner = linear(cosine_epochs=4, final_learning_rate=1e-4)
        learner.compile(keras.optimizers.Adam(1e-2), "mean_squared_error")
        return learner

    whole, seen = made(), Rates()
    whole.fit(epoch_data(), steps_per_epoch=2, epochs=6, callbacks=[seen], verbose=0)
    np.testing.assert_allclose(seen.rates, expected, rtol=1e-5)
    assert seen.epochs == list(range(6))

    part = made()
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "learner.keras")
    part.fit(epoch_data(), steps_per_epoch=2, epochs=2, callbacks=checkpoint, verbose=0)
    for resumed, first in ((keras.models.load_model(tmp_path / "learner.keras"), 2), (part, 0)):
        seen = Rates()
        resumed.fit(
            epoch_data(),
            steps_per_epoch=2,
            initial_epoch=first,
            epochs=first + 4,
            callbacks=[seen],
            verbose=0,
        )
        np.testing.assert_allclose(seen.rates, expected[2:], rtol=1e-5)
        assert seen.epochs == [2, 3, 4, 5]
        for a, b in zip(resumed.get_weights(), whole.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_annealing_within_fit_does_not_trace_again(tmp_path):
    """One trace for all phases; a resumed run is in the phase where it stopped."""

    class Counting(tfmeta.MAMLPlusPlus):
        traces = 0

        def train_step(self, data):
            type(self).traces += 1
            return super().train_step(data)

    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(1, use_bias=False)])
    learner = Counting(model, RATE, STEPS, first_order_epochs=1, multi_step_epochs=3)
    learner.compile(keras.optimizers.SGD(1e-3), "mean_squared_error")
    learner.fit(epoch_data(), steps_per_epoch=2, epochs=5, verbose=0)
    assert Counting.traces <= 2  # Keras builds the step symbolically, and traces it
    assert int(learner.epoch) == 5


def test_a_plateau_lowers_the_outer_rate():
    """The adaptive outer rate is Keras's own callback."""
    learner = linear()
    learner.compile(keras.optimizers.SGD(1e-9), "mean_squared_error")
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1.0)
    learner.fit(epoch_data(), steps_per_epoch=1, epochs=4, callbacks=[plateau], verbose=0)
    assert float(learner.optimizer.learning_rate) < 1e-9


def test_all_parts_off_is_maml():
    """To the last bits of float32, after several outer steps."""
    weights = []
    for make in (
        lambda: tfmeta.MAML(conv_network(), 0.1, 2),
        lambda: tfmeta.MAMLPlusPlus(conv_network(), 0.1, 2, **OFF),
    ):
        keras.utils.set_random_seed(3)
        learner = make()
        learner.compile(
            keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(True)
        )
        losses = [learner.train_on_batch(*episodes(seed)) for seed in range(5)]
        weights.append([np.array(losses), *learner.model.get_weights()])
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


# Batch normalisation by step


def normalised(x, gamma, beta, mean=None, variance=None):
    mean = x.mean(0) if mean is None else mean
    variance = x.var(0) if variance is None else variance
    return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta


def per_step_model():
    norm = keras.layers.BatchNormalization(momentum=0.9)
    head = keras.layers.Dense(1, use_bias=False)
    model = keras.Sequential([keras.Input((FEATURES,)), norm, head])
    head.set_weights([START])
    return model


GAMMA = RNG.uniform(0.5, 1.5, size=(STEPS, FEATURES))
BETA = RNG.normal(size=(STEPS, FEATURES))


@pytest.mark.parametrize("batch_norm", ["transductive", "support", "running"])
def test_per_step_batch_norm(float64, batch_norm):
    """Row k in step k, the last for the queries; γ and β stay in the inner loop."""
    learner = tfmeta.MAMLPlusPlus(
        per_step_model(), RATE, STEPS, **{**OFF, "per_step_batch_norm": True}, batch_norm=batch_norm
    )
    learner.compile(keras.optimizers.SGD(0.0), "mean_squared_error")
    norm = learner.model.layers[0]
    assert isinstance(norm, PerStepBatchNormalization)
    mean, variance = RNG.normal(size=(STEPS, FEATURES)), RNG.uniform(1, 2, (STEPS, FEATURES))
    norm.set_weights([GAMMA, BETA, mean, variance])

    running = batch_norm == "running"
    w = START
    for k in range(STEPS):
        z = normalised(X, GAMMA[k], BETA[k], *((mean[k], variance[k]) if running else ()))
        w = w - RATE * slope(w, z, X_Y)
    z = normalised(
        Q,
        GAMMA[-1],
        BETA[-1],
        *{
            "transductive": (),
            "support": (X.mean(0), X.var(0)),
            "running": (mean[-1], variance[-1]),
        }[batch_norm],
    )
    np.testing.assert_allclose(learner.predict_on_batch(INPUTS)[0], z @ w, rtol=1e-8)
    adapted = learner.adapt(X, X_Y)
    assert not any(isinstance(x, PerStepBatchNormalization) for x in adapted.layers)
    np.testing.assert_allclose(adapted.predict(Q, verbose=0), z @ w, rtol=1e-8)

    # Training moves the running statistics of each step, where they are used.
    learner.train_on_batch(INPUTS, TARGETS)
    moved = norm.moving_mean.numpy()
    if not running:
        np.testing.assert_array_equal(moved, mean)
        return
    by_support = 0.9 * mean + 0.1 * X.mean(0)
    by_support[-1] = 0.9 * by_support[-1] + 0.1 * Q.mean(0)
    np.testing.assert_allclose(moved, by_support, rtol=1e-10)


def test_swapping_keeps_the_numbers():
    """A swapped model computes what it did, in each step; nested models too."""
    inner = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), inner])
    model.set_weights([RNG.normal(size=w.shape) ** 2 for w in model.get_weights()])
    swapped = per_step_batch_norm(model, 3)
    x = RNG.normal(size=(5, 4))
    np.testing.assert_allclose(swapped(x), model(x), rtol=1e-6)
    (norm,) = swapped.layers[1].layers
    assert norm.gamma.shape == (3, 4)
    for step in range(3):
        norm.step = step
        np.testing.assert_allclose(swapped(x), model(x), rtol=1e-6)
    without = tfmeta.models.mlp((4,), 2)
    assert per_step_batch_norm(without, 3) is without
    assert per_step_batch_norm(swapped, 3) is swapped


@keras.saving.register_keras_serializable(package="test")
class Own(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm, self.head = keras.layers.BatchNormalization(), keras.layers.Dense(3)

    def call(self, x):
        return self.head(self.norm(x))


BAD = [
    ({"multi_step_loss": "linear"}, r"`multi_step_loss` must be 'annealed'.*'linear'"),
    ({"multi_step_epochs": 0}, r"`multi_step_epochs` must be at least 1"),
    ({"discount": 0.0}, r"`discount` must be positive"),
    ({"first_order_epochs": -1}, r"`first_order_epochs` must be at least 0"),
    ({"cosine_epochs": 0}, r"`cosine_epochs` must be at least 1"),
    ({"final_learning_rate": -1.0}, r"`final_learning_rate` must be at least 0"),
    ({"outer_clip_norm": 0.0}, r"`outer_clip_norm` must be positive"),
    ({"tolerance": -0.1}, r"`tolerance` must be at least 0"),
    ({"learned_rates": "layer"}, r"`learned_rates` must be one of.*'tensor_step'.*'layer'"),
    ({"evaluation_steps": 7}, r"`inner_steps` and `evaluation_steps` must be .*3 and 7"),
    ({"evaluation_steps": 2}, r"`inner_steps` and `evaluation_steps` must be .*3 and 2"),
    ({"inner_learning_rate": [0.1, 0.2]}, r"at most the number of inner rates.*3 steps, 2 rates"),
    ({"inner_learning_rate": []}, r"`inner_learning_rate` must have at least one"),
    (
        {"inner_learning_rate": [0.1] * 3, "learned_rates": "weight"},
        r"must be one number for learned_rates='weight'. Received: 3 rates",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        tfmeta.MAMLPlusPlus(per_step_model(), **{"inner_steps": STEPS, **arguments})


def test_other_bad_uses():
    with pytest.raises(ValueError, match=r"Functional or Sequential.*PerStepBatchNormalization"):
        tfmeta.MAMLPlusPlus(Own(), 0.1)
    with pytest.raises(ValueError, match=r"`steps` must be at least 1"):
        PerStepBatchNormalization(0)
    learner = linear(cosine_epochs=4)
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, 10)
    with pytest.raises(ValueError, match=r"must have a number as learning rate.*CosineDecay"):
        learner.compile(keras.optimizers.Adam(schedule), "mse")
    learner = linear(outer_clip_norm=1.0)
    with pytest.raises(ValueError, match=r"`outer_clip_norm` must be None.*clipnorm=2.0"):
        learner.compile(keras.optimizers.Adam(clipnorm=2.0), "mse")
