"""How many points does it take to know a wave? Bayesian MAML with a band that can be relied on.

A network that has adapted to one point of a sine wave predicts a wave, and so does one that has
seen twelve. The second is worth more; but the prediction alone does not tell. Here five networks,
the particles, adapt at once, each with an opinion of its own about its error. From both comes a
band around the prediction, and other waves tell how far it is to be stretched for nine tenths of a
wave to lie within: far after one point, little after twelve. Takes about three minutes on two
cores.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

import tfmeta

print("Takes about three minutes on two cores.", flush=True)
keras.utils.set_random_seed(0)

# ## Tasks
#
# The waves of `sinusoid.py`: amplitudes from 0.1 to 5, phases from 0 to π. The learner is to get
# along with one point, with three and with twelve. For all tasks to be of one size it is shown
# twelve each time, of which the first ones are repeated: the mean loss of twelve that are one point
# twelve times is the loss of that point.

SHOWN = [1, 3, 12]
waves = tfmeta.data.Sinusoids(shots=12, queries=20, seed=0)
watched_waves = tfmeta.data.Sinusoids(shots=12, queries=100, seed=500)
test_waves = tfmeta.data.Sinusoids(shots=12, queries=100, seed=1000)


def with_few(inputs, points):
    support = {name: inputs[name] for name in ("support_x", "support_y")}
    return {
        **inputs,
        **{k: tf.gather(v, tf.range(12) % points, axis=1) for k, v in support.items()},
    }


def in_turn(number, episodes):
    inputs, targets = episodes
    return with_few(inputs, tf.gather(SHOWN, tf.cast(number % len(SHOWN), tf.int32))), targets


# ## Learner
#
# A network with two outputs, the mean and what becomes the variance. Its loss is the likelihood of
# the points; the squared error beside it makes the mean be learnt where the variance is large.

STEPS, EPOCHS = 1000, 3
loss = tfmeta.losses.GaussianNLL(squared_error=0.5, least_variance=0.1)
learner = tfmeta.BayesianMAML(
    tfmeta.models.mlp((1,), outputs=2, units=(40, 40)),
    inner_learning_rate=0.01,
    inner_steps=5,
    particles=5,
    outer_loss="query",
    task_chunk=10,
)
rate = keras.optimizers.schedules.CosineDecay(2e-3, EPOCHS * STEPS)
learner.compile(keras.optimizers.Adam(rate, global_clipnorm=10.0), loss)
episodes = waves.dataset(meta_batch_size=10).enumerate().map(in_turn)
learner.fit(episodes, steps_per_epoch=STEPS, epochs=EPOCHS, verbose=2)

# ## The band
#
# The variance of a prediction is what the particles say of their error, on average, and how far
# they are apart. Within 1.645 standard deviations lie nine tenths of a normal distribution. But the
# mean loss of some points does not tell how many they were, so that the deviation is much the same
# after one and after twelve. What is missing is a number for each: how many deviations nine tenths
# of the points of other waves are away, which are neither trained on nor tested.


def predicted(inputs):
    """Return mean and standard deviation of each query."""
    outputs, apart = learner.moments(inputs)
    mean, variance = loss.mean_and_variance(outputs)
    return mean.numpy(), np.sqrt(variance + apart[..., :1])


def deviations(points, episodes):
    """Return by how many of its deviations each prediction is wrong."""
    inputs, targets = episodes
    mean, deviation = predicted(with_few(inputs, points))
    return np.abs(targets - mean) / deviation


watched = watched_waves.batch(0, 300)
stretch = {points: np.quantile(deviations(points, watched), 0.9) for points in SHOWN}

# ## Test

test = inputs, targets = test_waves.batch(0, 300)
print(
    "\npoints   error (root mean square)   half the band   of the waves within it, and unstretched"
)
for points in SHOWN:
    mean, deviation = predicted(with_few(inputs, points))
    error, away = np.sqrt(np.mean((targets - mean) ** 2)), deviations(points, test)
    within = [100 * np.mean(away <= most) for most in (stretch[points], 1.645)]
    half = stretch[points] * deviation.mean()
    print(f"{points:6}{error:27.2f}{half:16.2f}{within[0]:20.1f} %{within[1]:12.1f} %")

# ## The picture
#
# Three new waves. With every point the band closes in on the wave.

x = np.linspace(-5, 5, 200, dtype=np.float32)
figure = Figure(figsize=(11, 8), layout="constrained")
grid = figure.subplots(3, len(SHOWN), sharex=True, sharey=True)
few = {k: v[:3] for k, v in inputs.items()}
for column, points in enumerate(SHOWN):
    lines = {**few, "query_x": np.repeat(x[None, :, None], 3, axis=0)}
    mean, deviation = predicted(with_few(lines, points))
    for task, axes in enumerate(grid[:, column]):
        middle, half = mean[task, :, 0], stretch[points] * deviation[task, :, 0]
        axes.fill_between(x, middle - half, middle + half, alpha=0.25, label="90 % band")
        axes.plot(x, middle, color="tab:blue", label="prediction")
        query = inputs["query_x"][task], targets[task]
        axes.plot(*query, ".", color="tab:green", markersize=3, label="the wave")
        seen = few["support_x"][task, :points], few["support_y"][task, :points]
        axes.plot(*seen, "^", color="tab:red", label="what is shown")
    grid[0, column].set_title(f"{points} point{'s' * (points > 1)}")
grid[0, 0].legend(fontsize=8, loc="lower left")
figure.savefig("sinusoid_bands.png", dpi=120)
print("The picture is sinusoid_bands.png.")
