"""Learning to read letters from one example each.

The package brings a data set that needs no download: the letters of the fonts that matplotlib
ships. We train a Prototypical Network on some of the letters, and test it on letters that it has
never seen: shown one drawing of each of five new letters, it has to say which of them another
drawing shows. Takes about two minutes on two cores; run it with `make demo`, or
`python examples/demo.py`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import tfmeta
from tfmeta import plots

print("Takes about two minutes on two cores.", flush=True)
keras.utils.set_random_seed(0)

# ## Data
#
# A `ClassDataset` holds drawings sorted by class. The three parts have different letters, so what
# is measured on the last one is learning from few examples, and not memory.

train, validation, test = tfmeta.data.load("glyphs")
for part in (train, validation, test):
    print(f"{part.num_classes:5} letters, {len(part):6} drawings: {part.description}")

# Episodes are drawn from it: small tasks of `ways` letters with `shots` labelled drawings and
# `queries` more to classify. Training on harder tasks than the test's, here 20 letters and not 5,
# makes a better embedding.

episodes = tfmeta.data.EpisodeSampler(train, ways=20, shots=1, queries=5, seed=0)
watched = tfmeta.data.EpisodeSampler(validation, ways=5, shots=1, queries=15, seed=0)

# ## Learner
#
# The encoder is an ordinary Keras model. The learner around it classifies a query by the nearest
# class mean in the encoder's output, and is an ordinary Keras model again: `compile` and `fit` are
# Keras's own.

learner = tfmeta.PrototypicalNetwork(tfmeta.models.conv4(train.example_shape))
learner.compile(
    optimizer=keras.optimizers.Adam(1e-3),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
learner.fit(
    episodes.dataset(),
    steps_per_epoch=100,
    epochs=8,
    validation_data=watched.dataset().take(50),
)

# ## Test
#
# The mean over many tasks of unseen letters, with the 95 % interval of that mean.

print("\nFive unseen letters, one example of each:")
fresh = tfmeta.data.EpisodeSampler(test, ways=5, shots=1, queries=15, seed=1)
result = tfmeta.evaluate(learner, fresh, episodes=300)
print(f"Accuracy {result}; guessing would give 20 %.\n")

# ## One new task
#
# `adapt` takes the support set of one task and gives a plain Keras model for that task alone, which
# can be saved or exported and needs this package no more.

inputs, targets = tfmeta.data.EpisodeSampler(test, ways=10, shots=1, queries=8, seed=2).batch(0)
adapted = learner.adapt(inputs["support_x"][0], inputs["support_y"][0])
predictions = adapted.predict(inputs["query_x"][0], verbose=0).argmax(axis=1)
right = int((predictions == targets[0]).sum())
print(f"Adapted to one new task: {right} of its {len(predictions)} queries are right.")

plots.episode(
    inputs["support_x"][0],
    inputs["support_y"][0],
    inputs["query_x"][0],
    targets[0],
    predictions,
    "demo_episode.png",
    title=f"Ten letters from one example each: {right} of {len(predictions)} right",
)
print("The picture is demo_episode.png.")
