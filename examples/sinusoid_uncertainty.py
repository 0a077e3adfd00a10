"""Regression from five points that says how sure it is: Bayesian MAML on sine waves.

Five points do not tell which wave they come from. Here ten networks, the particles, adapt at once,
each with an opinion of its own about its error: the mean of their predictions, and a band that
should hold nine of ten points of the wave. The tasks are those of Yoon et al. (2018): amplitude,
phase and frequency are all unknown.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from matplotlib.figure import Figure

import tfmeta

keras.utils.set_random_seed(0)

# ## Tasks
#
# Amplitudes from 0.1 to 5, phases from 0 to 2π, frequencies from 0.5 to 2.

WAVES = {"amplitude": (0.1, 5.0), "phase": (0.0, 2 * np.pi), "frequency": (0.5, 2.0), "noise": 0.01}
waves = tfmeta.data.Sinusoids(shots=5, queries=10, seed=0, **WAVES)
test_waves = tfmeta.data.Sinusoids(shots=5, queries=100, seed=1000, **WAVES)

# ## Learner
#
# A network with two outputs, the mean and what becomes the variance. Its loss is the likelihood of
# the points; the squared error beside it makes the mean be learnt where the variance is large.
#
# The inner rate is twice that of MAML, because ten particles share a step.

STEPS, EPOCHS = 1000, 4
loss = tfmeta.losses.GaussianNLL(squared_error=2.0, least_variance=0.3)
learner = tfmeta.BayesianMAML(
    tfmeta.models.mlp((1,), outputs=2, units=(40, 40, 40)),
    inner_learning_rate=0.02,
    inner_steps=5,
    particles=10,
    outer_loss="query",
    task_chunk=10,
)
rate = keras.optimizers.schedules.CosineDecay(2e-3, EPOCHS * STEPS)
learner.compile(keras.optimizers.Adam(rate, global_clipnorm=10.0), loss)
learner.fit(waves.dataset(meta_batch_size=10), steps_per_epoch=STEPS, epochs=EPOCHS)

# ## Test
#
# The variance of a prediction is what the particles say of their error, on average, and how far
# they are apart. Within 1.645 standard deviations lie nine tenths of a normal distribution.

inputs, targets = test_waves.batch(0, 600)


def predicted(inputs):
    """Return mean and standard deviation of each query."""
    outputs, apart = learner.moments(inputs)
    mean, variance = loss.mean_and_variance(outputs)
    return mean.numpy(), np.sqrt(variance + apart[..., :1])


parts = [predicted({k: v[i : i + 50] for k, v in inputs.items()}) for i in range(0, 600, 50)]
mean, deviation = (np.concatenate(each) for each in zip(*parts, strict=True))
inside = np.abs(targets - mean) <= 1.645 * deviation
print(f"Five points, 600 waves: mean squared error {np.mean((targets - mean) ** 2):.3f}")
print(f"Within the 90 % band: {100 * inside.mean():.1f} % of the points")

# ## Bands
#
# Four new waves. Where a band is narrow, the wave should be near; between points that leave several
# waves possible it should be wide.

figure = Figure(figsize=(14, 3.5), layout="constrained")
x = np.linspace(-5, 5, 200, dtype=np.float32)[:, None]
few = {k: v[:4] for k, v in inputs.items()}
mean, deviation = predicted({**few, "query_x": np.repeat(x[None], 4, axis=0)})
for task, axes in enumerate(figure.subplots(1, 4, sharey=True)):
    middle, half = mean[task, :, 0], 1.645 * deviation[task, :, 0]
    axes.fill_between(x[:, 0], middle - half, middle + half, alpha=0.25, label="90 % band")
    axes.plot(x, middle, color="tab:blue", label="mean of ten particles")
    query = inputs["query_x"][task], targets[task]
    axes.plot(*query, ".", color="tab:green", markersize=3, label="the wave")
    points = few["support_x"][task], few["support_y"][task]
    axes.plot(*points, "^", color="tab:red", label="the five points")
    axes.set_xlabel("x")
axes.legend(fontsize=8)
figure.savefig("sinusoid_bands.png", dpi=120)
print("The picture is sinusoid_bands.png.")
