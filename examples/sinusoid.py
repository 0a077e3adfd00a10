"""Regression from five points: MAML on sine waves.

A task is one sine wave of unknown amplitude and phase, and the support set is a few points of it.
An ordinary network could only learn the mean of all waves, which is nearly flat; MAML finds
weights from which one gradient step bends the network into the wave that the points come from.
Finn, Abbeel and Levine (2017) introduced the problem. Takes about two minutes on two cores.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from matplotlib.figure import Figure

import tfmeta

print("Takes about two minutes on two cores.", flush=True)
keras.utils.set_random_seed(0)

# ## Tasks
#
# Amplitudes from 0.1 to 5, phases from 0 to π, points between -5 and 5. Training shows ten points
# of a wave and asks for ten others; the test will show five.

waves = tfmeta.data.Sinusoids(shots=10, queries=10, seed=0)
test_waves = tfmeta.data.Sinusoids(shots=5, queries=100, seed=1)

# ## Learner
#
# The paper's network, one inner step at a rate of 0.01. Adam's rate falls to nothing over the
# training, which takes out the noise of the last meta-batches.

EPOCHS, STEPS = 15, 2000
learner = tfmeta.MAML(tfmeta.models.mlp((1,), outputs=1), inner_learning_rate=0.01, task_chunk=25)
learner.compile(
    optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, EPOCHS * STEPS)),
    loss="mean_squared_error",
)
learner.fit(
    waves.dataset(meta_batch_size=25),
    steps_per_epoch=STEPS,
    epochs=EPOCHS,
)

# ## Test
#
# The mean squared error after one step on five points. A wave's own variance is about 4.

result = tfmeta.evaluate(learner, test_waves, episodes=600)
print(f"One step on five points: {result}")

# ## Before and after
#
# Three new waves: the network as it was trained, the same after one step on the points, the truth.

x = np.linspace(-5, 5, 200, dtype=np.float32)[:, None]
inputs, targets = test_waves.batch(0, 3)
figure = Figure(figsize=(12, 3.5), layout="constrained")
for task, axes in enumerate(figure.subplots(1, 3, sharey=True)):
    support_x, support_y = inputs["support_x"][task], inputs["support_y"][task]
    adapted = learner.adapt(support_x, support_y)
    query_x, query_y = inputs["query_x"][task], targets[task]
    axes.plot(query_x, query_y, ".", color="tab:green", markersize=3, label="the wave")
    axes.plot(x, learner.model.predict(x, verbose=0), ":", color="grey", label="before")
    axes.plot(x, adapted.predict(x, verbose=0), color="tab:blue", label="after one step")
    axes.plot(support_x, support_y, "^", color="tab:red", label="the five points")
    axes.set_xlabel("x")
    axes.legend(fontsize=8)
figure.savefig("sinusoid.png", dpi=120)
print("The picture is sinusoid.png.")
