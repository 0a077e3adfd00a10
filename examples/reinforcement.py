"""A policy that finds an unseen goal after one gradient step: MAML in reinforcement learning.

A point in the plane is to move to a goal that it cannot see: all it is told is how far it was.
A policy that is trained on all goals at once learns to stay in the middle, the best one can do
without knowing the goal. MAML trains one that tries, and that one step of policy gradient on a few
of its own trajectories turns into a policy for the goal at hand. The tasks are those of Finn et al.
(2017), section 5.3. Takes about four minutes on two cores, a third of it with `--seeds 1`; needs
`pip install 'tfmeta[rl]'`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import time

import gymnasium
import keras
import numpy as np
import tensorflow as tf
from gymnasium.vector.utils import batch_space
from matplotlib.figure import Figure

import tfmeta
from tfmeta.fast_weights import FastWeights

HORIZON, FASTEST, ARRIVED = 100, 0.1, 0.01

# ## The environment
#
# Many points at once, each with a goal of its own, as one vectorised environment of Gymnasium. The
# episode of a point that has arrived is over; the others go on, so that nothing starts by itself.


class PointNavigation(gymnasium.vector.VectorEnv):
    """Points in the plane that start at the origin, with a goal each.

    The observation is the position, an action the velocity, clipped to [-0.1, 0.1] in each of both
    directions, and the reward minus the distance to the goal. An episode ends within 0.01 of the
    goal, or after 100 steps.
    """

    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, num_envs):
        self.num_envs = num_envs
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.single_action_space = gymnasium.spaces.Box(-FASTEST, FASTEST, (2,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed=None, options=None):
        """Begin anew, with `options["goals"]` `[num_envs, 2]` or with goals that are drawn."""
        super().reset(seed=seed)
        goals = (options or {}).get("goals")
        if goals is None:
            goals = draw_goals(self.np_random, self.num_envs)
        self.goals = np.asarray(goals, np.float32)
        self.positions = np.zeros((self.num_envs, 2), np.float32)
        self.over = np.zeros(self.num_envs, bool)
        self.steps = 0
        return self.positions, {}

    def step(self, actions):
        """Move the points whose episodes are not over."""
        moves = np.clip(actions, -FASTEST, FASTEST) * ~self.over[:, None]
        self.positions = self.positions + moves.astype(np.float32)
        distances = np.linalg.norm(self.positions - self.goals, axis=1)
        rewards = -distances * ~self.over
        terminations = self.over | (distances < ARRIVED)
        self.steps += 1
        truncations = ~terminations & (self.steps >= HORIZON)
        self.over = terminations | truncations
        return self.positions, rewards, terminations, truncations, {}


def draw_goals(rng, number):
    return rng.uniform(-0.5, 0.5, (number, 2)).astype(np.float32)


# ## The policy
#
# An ordinary network: from a position to the mean of a normal distribution and the logarithm of its
# standard deviation, in units of the largest velocity.


def make_policy():
    policy = tfmeta.models.mlp((2,), outputs=4, units=(64, 64))
    last = policy.layers[-1]
    last.kernel.assign(0.1 * last.kernel)
    last.bias.assign([0.0, 0.0, np.log(0.5), np.log(0.5)])
    return policy


# ## The loss
#
# What makes reinforcement learning fit into MAML is a loss. An example is a step of a trajectory:
# the position is the input, and the label is what was done there and the advantage A, by how much
# that was better than expected. The gradient of the loss must be REINFORCE's, the mean of
# −A ∇ log π; but MAML takes a second derivative, and there the usual −A log π is wrong: it knows
# that actions become more probable, and not that the trajectories, over which the mean is taken,
# become others with them. The ratio of the new probability and the old one has both derivatives:
# its first is ∇ log π, and its second ∇² log π + ∇ log π ∇ log πᵀ. The old probability is that of
# the very weights at which the derivative is taken, hence `stop_gradient`.
#
# This is the surrogate of ProMP (Rothfuss et al. 2019). That of DiCE (Foerster et al. 2018), with
# the product of the ratios of all steps so far, has products of ∇ log π of different steps as well.


def policy_gradient(label, output):
    """Return −A π/π_old of each step, `[n]` of labels `[n, 3]` and outputs `[n, 4]`."""
    mean, log_deviation = tf.split(output, 2, axis=-1)
    action, advantage = label[..., :2], label[..., 2]
    standard = (action - mean) * tf.exp(-log_deviation)
    log_probability = -tf.reduce_sum(standard**2 / 2 + log_deviation, axis=-1)
    return -advantage * tf.exp(log_probability - tf.stop_gradient(log_probability))


# ## Trajectories
#
# Each task has weights of its own, so they have an axis of tasks in front. `predict_task` and
# `inner_step` are the learner's own parts, for one task; TensorFlow computes them for all.


class Tasks:
    """Policies of several tasks: how they act, and how a gradient step improves them."""

    def __init__(self, learner, seed):
        self.learner = learner
        self.rng = np.random.default_rng(seed)

        def act(task):
            weights, positions = task
            state = FastWeights(weights, []), []
            return learner.predict_task(state, positions, training=False)

        def improve(rate, task):
            weights, positions, labels = task
            step = learner.inner_step(positions, labels, FastWeights(weights, []), training=False)
            step = step._replace(rates=lambda k: [rate] * len(weights))
            _, weights, _, _ = step(0, weights, [], step.rule.init(weights))
            return weights

        self._act = tf.function(lambda *task: tf.vectorized_map(act, task), autograph=False)
        self._improve = tf.function(
            lambda rate, *task: tf.vectorized_map(lambda one: improve(rate, one), task),
            autograph=False,
        )

    def start(self, policy, tasks):
        """Return the policy's weights, once for each task: `[tasks, ...]`."""
        return [tf.repeat(v[None], tasks, axis=0) for v in map(tf.constant, policy.weights)]

    def improved(self, weights, batch, rate):
        """Return the weights after a gradient step of each task on its own trajectories."""
        return self._improve(tf.constant(rate, tf.float32), weights, batch.positions, batch.labels)

    def trajectories(self, weights, goals, each):
        """Let each task's policy act, `each` times."""
        tasks = len(goals)
        environment = PointNavigation(tasks * each)
        positions, _ = environment.reset(options={"goals": np.repeat(goals, each, axis=0)})
        steps = []
        for _ in range(HORIZON):
            outputs = self._act(weights, tf.reshape(positions, [tasks, each, 2])).numpy()
            mean, log_deviation = np.split(outputs.reshape(tasks * each, 4), 2, axis=1)
            noise = self.rng.standard_normal(mean.shape, np.float32)
            chosen = mean + np.exp(log_deviation) * noise
            going_on = ~environment.over
            before = positions
            positions, rewards, *_ = environment.step(FASTEST * chosen)
            steps.append((before, chosen, rewards, going_on))
        parts = (np.stack(part, axis=1) for part in zip(*steps, strict=True))
        return Trajectories(*(part.reshape(tasks, each, *part.shape[1:]) for part in parts))


class Trajectories:
    """What several tasks went through; arrays `[tasks, trajectories, steps, ...]`."""

    def __init__(self, positions, chosen, rewards, real):
        self.paths = positions
        self.returns = rewards.sum(axis=2)
        flat = [x.reshape(len(x), -1, *x.shape[3:]) for x in (positions, chosen)]
        advantage = advantages(positions, rewards, real)
        self.positions = flat[0]
        self.labels = np.concatenate([flat[1], advantage[..., None]], axis=2, dtype=np.float32)


def advantages(positions, rewards, real, discount=0.99):
    """Return by how much each step went better than expected, `[tasks, steps of all]`.

    What is expected of a step is a linear function of position and time, fitted to the rewards that
    followed (the baseline of Duan et al. 2016). For each task the mean is 0 and the deviation 1.
    """
    followed = np.zeros_like(rewards)
    after = 0
    for t in reversed(range(rewards.shape[2])):
        followed[:, :, t] = after = rewards[:, :, t] + discount * after
    elapsed = np.broadcast_to(np.arange(rewards.shape[2]) / 100, rewards.shape)[..., None]
    known = [positions, positions**2, elapsed, elapsed**2, elapsed**3]
    features = np.concatenate([*known, np.ones_like(elapsed)], axis=3) * real[..., None]
    x, y, real = (z.reshape(len(z), -1, *z.shape[3:]) for z in (features, followed * real, real))
    square = np.einsum("tni,tnj->tij", x, x) + 1e-5 * np.eye(x.shape[2])
    weights = np.linalg.solve(square, np.einsum("tni,tn->ti", x, y)[..., None])
    found = y - (x @ weights)[..., 0]
    number = real.sum(axis=1, keepdims=True)
    found = (found - found.sum(axis=1, keepdims=True) / number) * real
    return found / (np.sqrt((found**2).sum(axis=1, keepdims=True) / number) + 1e-8)


# ## Training
#
# For MAML a meta-batch is an episode as everywhere in this package: of each task the trajectories
# before the step are the support set, those after it the query set. `train_on_batch` differentiates
# the loss of the latter through the step. As in the paper, nothing asks which first trajectories
# would be the more telling ones: that these, too, come of the weights is left out of the gradient.

TASKS, EACH, RATE = 20, 10, 0.1


def optimizer(iterations):
    rate = keras.optimizers.schedules.CosineDecay(5e-3, iterations)
    return keras.optimizers.Adam(rate, global_clipnorm=1.0)


def make_learner(policy, iterations):
    learner = tfmeta.MAML(policy, inner_learning_rate=RATE, inner_steps=1)
    learner.compile(optimizer(iterations), loss=policy_gradient)
    return learner


def train_maml(tasks, rng, iterations):
    learner = tasks.learner
    for i in range(iterations):
        goals = draw_goals(rng, TASKS)
        weights = tasks.start(learner.model, TASKS)
        before = tasks.trajectories(weights, goals, EACH)
        weights = tasks.improved(weights, before, RATE)
        after = tasks.trajectories(weights, goals, EACH)
        learner.train_on_batch(
            {
                "support_x": before.positions,
                "support_y": before.labels,
                "query_x": after.positions,
            },
            after.labels,
        )
        if (i + 1) % 20 == 0:
            told = f"return {before.returns.mean():6.1f} before, {after.returns.mean():6.1f} after"
            print(f"  MAML, iteration {i + 1:4}: {told} a step", flush=True)


# The same network without adaptation: one policy for all tasks, trained by Keras with the same loss
# on as many trajectories.


def train_together(policy, tasks, rng, iterations):
    policy.compile(optimizer(iterations), loss=policy_gradient)
    for i in range(iterations):
        goals = draw_goals(rng, TASKS)
        batch = tasks.trajectories(tasks.start(policy, TASKS), goals, 2 * EACH)
        policy.train_on_batch(batch.positions.reshape(-1, 2), batch.labels.reshape(-1, 3))
        if (i + 1) % 20 == 0:
            told = f"return {batch.returns.mean():6.1f}"
            print(f"  all tasks, iteration {i + 1:4}: {told}", flush=True)


# ## Test
#
# Goals that no training saw, the same for all; up to three steps, each on 20 new trajectories of
# the policy as it is then. How far to step is for each policy to find out on other goals: it gets,
# of the first step and then of the next ones, the rate that serves it best there.

RATES, STEPS, TEST_EACH = (0.003, 0.01, 0.03, 0.1, 0.3), 3, 20


def adapted(tasks, policy, goals, rates_of_step):
    """Return rates and trajectories of 0, 1, ... steps: of several rates those of the best."""
    weights = tasks.start(policy, len(goals))
    chosen, found = [], [tasks.trajectories(weights, goals, TEST_EACH)]
    for rates in rates_of_step:
        tried = []
        for rate in rates:
            after = tasks.improved(weights, found[-1], rate)
            # A step that is far too long ends nowhere, with returns that are no numbers.
            with np.errstate(over="ignore", invalid="ignore"):
                trajectories = tasks.trajectories(after, goals, TEST_EACH)
            tried.append((rate, after, trajectories))
        scores = [np.nan_to_num(x.returns.mean(), nan=-np.inf) for *_, x in tried]
        rate, weights, trajectories = tried[int(np.argmax(scores))]
        chosen.append(rate)
        found.append(trajectories)
    return chosen, found


def one_seed(seed, iterations):
    """Train and test: by method the rates, the returns by number of steps, the paths."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    policies = {"MAML": make_policy(), "all tasks": make_policy(), "not trained": make_policy()}
    tasks = Tasks(make_learner(policies["MAML"], iterations), seed)
    train_maml(tasks, rng, iterations)
    train_together(policies["all tasks"], tasks, rng, iterations)
    watched, test = (draw_goals(np.random.default_rng(1000 + n), n) for n in (20, 40))
    results = {}
    for name, policy in policies.items():
        rates, _ = adapted(tasks, policy, watched, [RATES] * STEPS)
        _, found = adapted(tasks, policy, test, [[rate] for rate in rates])
        returns = [round(float(x.returns.mean()), 2) for x in found]
        results[name] = {"rates": rates, "returns": returns, "paths": [x.paths for x in found]}
        print(f"  {name}: rates {rates}, returns {returns}", flush=True)
    return results, test


# ## The picture


def draw(results, goals, path):
    """Draw the returns of all seeds by the number of steps, and trajectories of the first seed."""
    figure = Figure(figsize=(14, 6.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[0.8, 1])
    axes = left.subplots()
    colours = {"MAML": "tab:blue", "all tasks": "tab:orange", "not trained": "grey"}
    for name, colour in colours.items():
        returns = np.array([seed[name]["returns"] for seed in results])
        steps = range(returns.shape[1])
        axes.plot(steps, returns.mean(0), "o-", color=colour, label=name)
        axes.fill_between(steps, returns.min(0), returns.max(0), color=colour, alpha=0.2)
    seeds = f"{len(results)} seeds, and the range" if len(results) > 1 else "one seed"
    axes.set(xlabel="gradient steps", ylabel="return", xticks=steps, title=f"unseen goals, {seeds}")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.25))
    axes.grid(alpha=0.3)
    # Six goals in all directions.
    around = np.argsort(np.arctan2(*goals.T))[:: len(goals) // 6][:6]
    rows = zip(right.subplots(2, 3), ("MAML", "all tasks"), strict=True)
    for row, name in rows:
        for axes, step in zip(row, (0, 1, STEPS), strict=True):
            for i, task in enumerate(around):
                for one in results[0][name]["paths"][step][task, :3]:
                    axes.plot(*one.T, color=f"C{i}", linewidth=0.8, alpha=0.8)
                axes.plot(*goals[task], "*", color=f"C{i}", markersize=14, markeredgecolor="black")
            axes.set(xlim=(-0.75, 0.75), ylim=(-0.75, 0.75), aspect="equal", xticks=[], yticks=[])
            axes.set_title(f"{name}, {step} step{'s' * (step != 1)}")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--iterations", type=int, default=100, help="outer steps of the training")
    parser.add_argument("--json", help="a file for the returns")
    arguments = parser.parse_args()
    print("Takes about four minutes on two cores with three seeds.", flush=True)
    results, begin = [], time.perf_counter()
    for seed in range(arguments.seeds):
        print(f"Seed {seed}", flush=True)
        found, goals = one_seed(seed, arguments.iterations)
        results.append(found)

    print("\nReturn on 40 unseen goals, the mean over seeds and the range:")
    print(f"{'gradient steps':14}" + "".join(f"{k:>24}" for k in range(STEPS + 1)))
    for name in results[0]:
        returns = np.array([seed[name]["returns"] for seed in results])
        cells = zip(returns.mean(0), returns.min(0), returns.max(0), strict=True)
        print(f"{name:14}" + "".join(f"{m:8.1f} ({a:6.1f} … {b:6.1f})" for m, a, b in cells))
    draw(results, goals, "reinforcement.png")
    print(f"The picture is reinforcement.png. That took {time.perf_counter() - begin:.0f} s.")
    if arguments.json:
        for seed in results:
            for method in seed.values():
                del method["paths"]
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
