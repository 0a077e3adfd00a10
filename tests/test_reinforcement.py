"""The example of reinforcement learning: its environment, and gradients against NumPy."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta

pytest.importorskip("gymnasium", reason="needs the extra `rl`")


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parents[1] / "examples" / "reinforcement.py"
    spec = importlib.util.spec_from_file_location("reinforcement", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_point_moves_at_most_so_fast_and_its_episode_ends_where_it_arrives(example):
    environment = example.PointNavigation(3)
    goals = np.array([[0.1, 0.0], [0.3, -0.4], [-0.5, 0.5]])
    positions, _ = environment.reset(options={"goals": goals})
    assert environment.observation_space.contains(positions)
    assert not positions.any()

    actions = np.array([[5.0, 0.0], [0.05, -0.2], [0.0, 0.0]], np.float32)
    positions, rewards, terminations, truncations, _ = environment.step(actions)
    np.testing.assert_allclose(positions, [[0.1, 0], [0.05, -0.1], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(rewards, [0, -np.hypot(0.25, 0.3), -np.sqrt(0.5)], atol=1e-7)
    np.testing.assert_array_equal(terminations, [True, False, False])
    assert not truncations.any()

    # What has arrived stays, and its rewards are over.
    positions, rewards, terminations, _, _ = environment.step(-actions)
    np.testing.assert_allclose(positions, [[0.1, 0], [0, 0], [0, 0]], atol=1e-7)
    np.testing.assert_allclose(rewards, [0, -0.5, -np.sqrt(0.5)], atol=1e-7)
    np.testing.assert_array_equal(terminations, [True, False, False])

    still = np.zeros((3, 2), np.float32)
    ends = [environment.step(still)[2:4] for _ in range(example.HORIZON - 2)]
    assert not any(truncations.any() for _, truncations in ends[:-1])
    np.testing.assert_array_equal(ends[-1][0], [True, False, False])
    np.testing.assert_array_equal(ends[-1][1], [False, True, True])


def test_goals_are_drawn_in_the_square_by_the_seed(example):
    environment = example.PointNavigation(500)
    environment.reset(seed=3)
    goals = environment.goals
    assert 0.45 < np.abs(goals).max() <= 0.5
    environment.reset(seed=3)
    np.testing.assert_array_equal(environment.goals, goals)
    environment.reset()
    assert not np.array_equal(environment.goals, goals)


def test_advantages_are_what_a_linear_fit_of_the_returns_leaves(example):
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(2, 3, 5, 2))
    rewards = rng.normal(size=(2, 3, 5))
    real = np.ones((2, 3, 5), bool)
    real[1, 0, 2:] = rewards[1, 0, 2:] = False  # an episode of two steps
    found = example.advantages(positions, rewards, real)
    for task in range(2):
        rows, returns = [], []
        for path in range(3):
            for t in range(int(real[task, path].sum())):
                x, y = positions[task, path, t]
                rows.append([x, y, x * x, y * y, *((t / 100) ** k for k in range(4))])
                later = rewards[task, path, t:]
                returns.append(later @ 0.99 ** np.arange(len(later)))
        rows, returns = np.array(rows), np.array(returns)
        # Ridge regression as ordinary least squares of more rows.
        ridge = np.sqrt(1e-5) * np.eye(8)
        fit = np.linalg.lstsq(np.concatenate([rows, ridge]), np.append(returns, np.zeros(8)))[0]
        left = returns - rows @ fit
        expected = (left - left.mean()) / left.std()
        np.testing.assert_allclose(found[task][real[task].ravel()], expected, rtol=1e-5, atol=1e-6)
        assert not found[task][~real[task].ravel()].any()


def test_the_loss_has_both_derivatives_of_the_expected_reward(example):
    """One step with the reward −|a − g|²: the mean over actions is known, and by quadrature."""
    mean, log_deviation = np.array([0.3, -0.2]), np.array([-0.4, 0.1])
    goal, baseline = np.array([1.0, 0.5]), -0.7
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    z = np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2)
    weights = np.outer(weights, weights).ravel() / (2 * np.pi)
    actions = mean + np.exp(log_deviation) * z
    advantages = -np.sum((actions - goal) ** 2, axis=1) - baseline
    labels = tf.constant(np.column_stack([actions, len(z) * weights * advantages]))

    parameters = tf.constant(np.concatenate([mean, log_deviation]))
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(parameters)
        with tf.GradientTape() as inner:
            inner.watch(parameters)
            outputs = tf.tile(parameters[None], [len(z), 1])
            loss = tf.reduce_mean(example.policy_gradient(labels, outputs))
        gradient = inner.gradient(loss, parameters)
        each = tf.unstack(gradient)
    hessian = [outer.gradient(one, parameters) for one in each]
    # Minus the expected reward is Σ (m − g)² + exp(2s).
    variance = np.exp(2 * log_deviation)
    expected = np.concatenate([2 * (mean - goal), 2 * variance])
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)
    expected = np.diag(np.concatenate([[2.0, 2.0], 4 * variance]))
    np.testing.assert_allclose(hessian, expected, rtol=1e-10, atol=1e-10)


class OneTask:
    """The same in NumPy, with importance weights of trajectories that stay what they are."""

    def __init__(self, shapes, rate, rng, n=7):
        self.shapes, self.rate = shapes, rate
        self.support, self.query = (
            (rng.normal(size=(n, 2)), rng.normal(size=(n, 2)), rng.normal(size=n)) for _ in range(2)
        )

    def log_probability(self, theta, x, action):
        ends = np.cumsum([np.prod(shape) for shape in self.shapes])[:-1]
        parts = zip(np.split(theta, ends), self.shapes, strict=True)
        kernel, bias, last_kernel, last_bias = (part.reshape(shape) for part, shape in parts)
        hidden = x @ kernel + bias
        hidden = np.where(hidden.real > 0, hidden, 0)
        mean, log_deviation = np.split(hidden @ last_kernel + last_bias, 2, axis=1)
        standard = (action - mean) / np.exp(log_deviation)
        return -np.sum(standard**2 / 2 + log_deviation, axis=1)

    def loss(self, theta, sampled_at, trajectories):
        *seen, advantage = trajectories
        ratio = np.exp(self.log_probability(theta, *seen) - self.log_probability(sampled_at, *seen))
        return -np.mean(ratio * advantage)

    def adapted(self, theta, sampled_at):
        """Take the step, with a gradient by complex differences, which round nothing."""
        unit = 1e-30j * np.eye(len(theta))
        gradient = [self.loss(theta + e, sampled_at, self.support).imag / 1e-30 for e in unit]
        return theta - self.rate * np.array(gradient)

    def outer_gradient(self, theta):
        after = self.adapted(theta, theta)
        step = 1e-6 * np.eye(len(theta))
        return [
            (
                self.loss(self.adapted(theta + e, theta), after, self.query)
                - self.loss(self.adapted(theta - e, theta), after, self.query)
            )
            / 2e-6
            for e in step
        ]


def flat(weights):
    return np.concatenate([np.ravel(w) for w in weights])


def test_the_outer_gradient_is_that_of_numpy(example, float64):
    keras.utils.set_random_seed(0)
    policy = tfmeta.models.mlp((2,), 4, units=(3,))
    rng = np.random.default_rng(1)
    theta = [0.3 * rng.normal(size=w.shape) for w in policy.get_weights()]
    tasks = [OneTask([w.shape for w in theta], 0.1, rng) for _ in range(2)]

    def given(part):
        each = zip(*(getattr(task, part) for task in tasks), strict=True)
        x, action, advantage = map(np.stack, each)
        return x, np.concatenate([action, advantage[..., None]], axis=2)

    (support_x, support_y), (query_x, query_y) = given("support"), given("query")
    inputs = {"support_x": support_x, "support_y": support_y, "query_x": query_x}

    def step(loss):
        """Return what an outer step at a rate of 1 takes off the weights."""
        policy.set_weights(theta)
        learner = tfmeta.MAML(policy, inner_learning_rate=0.1, inner_steps=1)
        learner.compile(keras.optimizers.SGD(1.0), loss=loss)
        learner.train_on_batch(inputs, query_y)
        return flat(theta) - flat(policy.get_weights())

    expected = np.mean([task.outer_gradient(flat(theta)) for task in tasks], axis=0)
    np.testing.assert_allclose(step(example.policy_gradient), expected, rtol=1e-6, atol=1e-8)

    # The logarithm has the same first derivative, so that the step is the same, but not the second.
    def logarithm(label, output):
        loss = example.policy_gradient(label, output)
        return label[..., 2] * tf.math.log(loss / -label[..., 2]) * -1

    wrong = step(logarithm)
    assert np.linalg.norm(wrong - expected) > 0.05 * np.linalg.norm(expected)


def test_many_tasks_at_once_take_the_step_that_adapt_takes(example, monkeypatch):
    monkeypatch.setattr(example, "HORIZON", 9)
    keras.utils.set_random_seed(0)
    policy = tfmeta.models.mlp((2,), 4, units=(3,))
    learner = tfmeta.MAML(policy, inner_learning_rate=0.2, inner_steps=1)
    learner.compile("adam", loss=example.policy_gradient)
    tasks = example.Tasks(learner, seed=0)
    goals = example.draw_goals(np.random.default_rng(0), 2)
    found = tasks.trajectories(tasks.start(policy, 2), goals, each=3)
    assert found.paths.shape == (2, 3, example.HORIZON, 2)
    assert not found.paths[:, :, 0].any()
    assert (np.abs(np.diff(found.paths, axis=2)) <= example.FASTEST * 1.0001).all()
    weights = tasks.improved(tasks.start(policy, 2), found, 0.2)
    for task in range(2):
        adapted = learner.adapt(found.positions[task], found.labels[task])
        for several, one in zip(weights, adapted.get_weights(), strict=True):
            np.testing.assert_allclose(several[task], one, rtol=1e-4, atol=1e-6)
