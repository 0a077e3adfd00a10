"""A classifier that knows when it does not know: Bayesian MAML on letters, one example each.

Accuracy says how often a classifier is right. A program that acts on its answers also wants to know
how likely this very answer is right, and whether the question had an answer at all. We train MAML
and Bayesian MAML, which adapts five networks in the place of one, on the same letters for the same
number of steps, and ask both. Takes about two minutes on two cores.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import tfmeta
from tfmeta import plots

print("Takes about two minutes on two cores.", flush=True)
WAYS = 5
train, validation, test = tfmeta.data.load("glyphs")
sampler = tfmeta.data.EpisodeSampler(train, WAYS, shots=1, queries=5, seed=0)
validation_sampler = tfmeta.data.EpisodeSampler(validation, WAYS, shots=1, queries=5, seed=1)

# ## Training
#
# The five particles start at five initialisations, and repel each other in the inner loop. Their
# kernel divides the step by five, which the larger rate makes up for.


def network():
    return tfmeta.models.conv4(train.example_shape, outputs=WAYS, filters=16, downsample="stride")


learners = {
    "MAML": lambda: tfmeta.MAML(network(), inner_learning_rate=0.4, inner_steps=1),
    "Bayesian MAML": lambda: tfmeta.BayesianMAML(
        network(), inner_learning_rate=1.2, inner_steps=1, particles=5, outer_loss="query"
    ),
}
trained = {}
for name, make in learners.items():
    keras.utils.set_random_seed(0)
    trained[name] = learner = make()
    learner.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    print(name)
    learner.fit(sampler.dataset(meta_batch_size=8), steps_per_epoch=150, epochs=2)

# ## How far to believe them
#
# Test episodes of ten letters of which five are shown: the queries of the others have no right
# answer, and the learner should be less sure of them (AUROC: 50 % is guessing). The temperature is
# one number, fitted on validation episodes, that makes all probabilities flatter or sharper.

mixed = tfmeta.data.EpisodeSampler(test, 2 * WAYS, shots=1, queries=5, seed=1)
for name, learner in trained.items():
    for temperature in (1.0, validation_sampler):
        result = tfmeta.uncertainty(
            learner, mixed, 300, temperature, support_ways=WAYS, verbose=False
        )
        print(f"\n{name}: {result}")
    file = f"reliability_{name.replace(' ', '_').lower()}.png"
    plots.reliability_diagram(result.probabilities, result.labels, file)
    print(f"The picture is {file}.")

# ## Acting on it
#
# Answer only where the entropy is small, and hand the rest to a human: the accuracy of what is
# answered, by how much is answered.

kept, accuracy = tfmeta.calibration.rejection_curve(result.probabilities, result.labels)
for share in (1.0, 0.9, 0.75, 0.5):
    i = round(share * len(kept)) - 1
    print(f"Answering {100 * kept[i]:3.0f} %: {100 * accuracy[i]:.1f} % are right")
