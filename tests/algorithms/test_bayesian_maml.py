"""Bayesian MAML against MAML, and against a twin of its losses on a linear model."""

import keras
import numpy as np
import pytest

import tfmeta
from tests.learners import episodes
from tests.rows import rows
from tests.test_svgd import median_width, numeric_gradient, twin

RATE, STEPS, PARTICLES, LEADER_STEPS, REPULSION = 0.1, 2, 3, 2, 0.3


def network():
    """Return a network with batch normalisation that compiles fast."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            layers.Conv2D(4, 3, 4),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


def trained(learner, loss=None, **options):
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.SGD(1.0), loss, metrics=["accuracy"], **options)
    x, y = episodes()
    history = learner.fit(x, y, batch_size=4, epochs=2, verbose=0).history
    return learner, history


@pytest.mark.parametrize("axis", rows(["loop", "packed"], ["loop"]))
def test_one_particle_is_maml(axis):
    made = []
    for cls, own in ((tfmeta.MAML, {}), (tfmeta.BayesianMAML, {"particles": 1})):
        keras.utils.set_random_seed(0)
        own = {**own, "outer_loss": "query"} if own else own
        made.append(trained(cls(network(), 0.1, 2, task_axis=axis, **own)))
    (maml, history), (bayesian, own_history) = made
    np.testing.assert_allclose(history["loss"], own_history["loss"], rtol=1e-6)
    for a, b in zip(maml.get_weights(), bayesian.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    x, _ = episodes(1)
    np.testing.assert_allclose(
        maml.predict_on_batch(x), bayesian.predict_on_batch(x), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("outer_loss", rows(["chaser", "query"], ["query"]))
def test_tasks_in_turn_and_side_by_side(outer_loss):
    made = []
    for axis in ("loop", "packed"):
        keras.utils.set_random_seed(0)
        learner = tfmeta.BayesianMAML(
            network(), 0.1, 2, particles=3, outer_loss=outer_loss, task_axis=axis, task_chunk=3
        )
        made.append(trained(learner))
    (loop, history), (packed, packed_history) = made
    np.testing.assert_allclose(history["loss"], packed_history["loss"], rtol=1e-4)
    for a, b in zip(loop.get_weights(), packed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    x, _ = episodes(1)
    for a, b in zip(loop.moments(x), packed.moments(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


class TestLinear:
    """Particles `[M, 4]` of three weights and a bias."""

    def task(self):
        rng = np.random.default_rng(1)
        draw = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 4, 1))
        (support_x, query_x), (support_y, query_y) = draw
        return support_x, support_y, query_x, query_y

    def gradients(self, particles, x, y):
        ones = np.concatenate([x, np.ones((len(x), 1))], 1)
        return np.stack([2 / len(y) * ones.T @ (ones @ p - y[:, 0]) for p in particles])

    def descended(self, particles, x, y, steps, widths=None):
        """Go down with given widths of the kernel, or with those of the particles."""
        found = []
        for k in range(steps):
            found.append(median_width(particles) if widths is None else widths[k])
            gradients = self.gradients(particles, x, y)
            particles = particles - RATE * twin(gradients, particles, REPULSION, found[k])
        return particles, found

    def query_loss(self, particles):
        _, _, x, y = self.task()
        ones = np.concatenate([x, np.ones((len(x), 1))], 1)
        return np.mean((ones @ particles.T - y) ** 2)

    @pytest.mark.parametrize("outer_loss", ["chaser", "query"])
    def test_outer_loss(self, outer_loss, float64):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        learner = tfmeta.BayesianMAML(
            model,
            RATE,
            STEPS,
            particles=PARTICLES,
            outer_loss=outer_loss,
            leader_steps=LEADER_STEPS,
            repulsion=REPULSION,
        )
        learner.compile(keras.optimizers.SGD(1.0), "mean_squared_error")
        support_x, support_y, query_x, query_y = self.task()
        inputs = {"support_x": support_x, "support_y": support_y, "query_x": query_x}
        learner.build({name: (1, *x.shape) for name, x in inputs.items()})
        # Kernel and bias of the first, then of the others.
        kernel, bias = (np.array(v) for v in model.trainable_variables)
        kernels, biases = (np.array(v) for v in learner.others)
        start = np.concatenate(
            [
                np.concatenate([kernel[None], kernels])[..., 0],
                np.concatenate([bias[None], biases]),
            ],
            1,
        )
        loss, gradients, _ = learner.task_gradients(inputs, query_y)

        end, widths = self.descended(start, support_x, support_y, STEPS)
        both = np.concatenate([support_x, query_x]), np.concatenate([support_y, query_y])
        leader, _ = self.descended(end, *both, LEADER_STEPS)

        def loss_at(start):
            """Return the outer loss; leader and widths are constants to its gradient."""
            end, _ = self.descended(start, support_x, support_y, STEPS, widths)
            return ((end - leader) ** 2).sum() if outer_loss == "chaser" else self.query_loss(end)

        np.testing.assert_allclose(loss, loss_at(start), rtol=1e-10)
        by_id = dict(zip(map(id, learner.trainable_variables), gradients, strict=True))
        first, rest = (
            np.concatenate([np.reshape(by_id[id(v)], (-1, n)) for v, n in pairs], 1)
            for pairs in (
                zip(model.trainable_variables, (3, 1), strict=True),
                zip(learner.others, (3, 1), strict=True),
            )
        )
        np.testing.assert_allclose(
            np.concatenate([first, rest]), numeric_gradient(loss_at, start), rtol=1e-6, atol=1e-9
        )


def test_the_mean_of_classes_is_that_of_probabilities():
    learner, _ = trained(tfmeta.BayesianMAML(network(), 0.1, 1, particles=3))
    x, _ = episodes(1)
    predictions = learner.predict_on_batch(x)
    np.testing.assert_allclose(np.exp(predictions).sum(-1), 1, rtol=1e-5)
    mean, variance = learner.moments(x)
    np.testing.assert_allclose(mean, np.exp(predictions), rtol=1e-4, atol=1e-6)
    adapted = learner.adapt(x["support_x"][0], x["support_y"][0])
    np.testing.assert_allclose(adapted(x["query_x"][0]), predictions[0], rtol=1e-4, atol=1e-5)
    each = keras.Model(adapted.input, adapted.get_layer("particles").output)(x["query_x"][0])
    probabilities = keras.ops.softmax(each)
    np.testing.assert_allclose(np.var(probabilities, axis=1), variance[0], rtol=1e-3, atol=1e-6)
    assert np.max(variance) > 1e-4


@pytest.mark.slow
def test_recomputed_steps_are_the_same():
    made = []
    for recompute in (False, True):
        keras.utils.set_random_seed(0)
        made.append(
            trained(tfmeta.BayesianMAML(network(), 0.1, 2, particles=3, recompute=recompute))
        )
    (kept, history), (recomputed, same) = made
    np.testing.assert_allclose(history["loss"], same["loss"], rtol=1e-5)
    for a, b in zip(kept.get_weights(), recomputed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_moments_are_traced_once_and_again_for_another_loss():
    learner, _ = trained(tfmeta.BayesianMAML(network(), 0.1, 1, particles=2))
    calls = []
    query = learner.query
    learner.query = lambda *args, **kwargs: calls.append(1) or query(*args, **kwargs)
    for seed in (1, 2):
        mean, _ = learner.moments(episodes(seed)[0])
    traced = len(calls)
    assert traced
    np.testing.assert_allclose(np.sum(mean, -1), 1, rtol=1e-5)
    # Of a loss of one's own it is not known that it takes logits.
    learner.compile(loss=lambda y, p: keras.losses.sparse_categorical_crossentropy(y, p, True))
    mean, _ = learner.moments(episodes(1)[0])
    assert len(calls) == 2 * traced
    assert np.ptp(np.sum(mean, -1)) > 1e-3


def test_particles_start_anew_or_around_the_model():
    x, _ = episodes()
    far = tfmeta.BayesianMAML(network(), particles=3)
    near = tfmeta.BayesianMAML(network(), particles=3, jitter=1e-3)
    for learner in (far, near):
        learner.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        learner.check_inputs(x)
    apart = [
        float(np.abs(np.array(learner.others[0]) - np.array(learner.model.weights[0])).mean())
        for learner in (far, near)
    ]
    assert apart[0] > 0.05
    assert 1e-4 < apart[1] < 1e-2


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"particles": 0}, ValueError, "`particles`"),
        ({"particles": -1}, ValueError, "`particles`"),
        ({"particles": 2.5}, TypeError, "`particles`"),
        ({"outer_loss": "elbo"}, ValueError, "'chaser', 'query'"),
        ({"repulsion": -0.1}, ValueError, "`repulsion`"),
        ({"jitter": 0.0}, ValueError, "`jitter`"),
        ({"leader_steps": 0}, ValueError, "`leader_steps`"),
        ({"batch_norm": "running"}, ValueError, "`batch_norm`"),
        ({"learned_rates": "step"}, TypeError, "no argument `learned_rates`"),
    ],
)
def test_wrong_arguments(wrong, error, words):
    with pytest.raises(error, match=words):
        tfmeta.BayesianMAML(network(), **wrong)


def test_a_layer_without_a_rule_is_named():
    model = keras.Sequential([keras.Input((12, 12, 1)), keras.layers.Resizing(4, 4)])
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(3))
    learner = tfmeta.BayesianMAML(model)
    learner.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match=r"side by side.*layer 'resizing"):
        learner.check_inputs(episodes()[0])
