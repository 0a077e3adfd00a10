"""Starting MAML from a network that was trained the ordinary way.

Often there is a good classifier of the training classes already, or one is quickly made. Its body
has seen all the strokes that letters are made of, though it never learnt to learn from few
examples. Is it a better place to start MAML from than random weights? We train an ordinary
classifier of letters, put a small head on its body, and train MAML from there and from random
weights, for the same number of steps on the same episodes. Takes about three minutes.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from matplotlib.figure import Figure

import tfmeta

keras.utils.set_random_seed(0)
WAYS, FILTERS, EPOCHS, STEPS = 5, 32, 10, 60

# ## Data
#
# The letters of the three parts differ, so that the classifier never sees one of the test's.

train, validation, test = tfmeta.data.load("glyphs")
episodes = tfmeta.data.EpisodeSampler(train, WAYS, shots=1, queries=5, seed=0)
watched = tfmeta.data.EpisodeSampler(validation, WAYS, shots=1, queries=15, seed=0)
fresh = tfmeta.data.EpisodeSampler(test, WAYS, shots=1, queries=15, seed=1)


def network(outputs):
    return tfmeta.models.conv4(train.example_shape, outputs, FILTERS, downsample="stride")


# ## The ordinary classifier
#
# One output for each letter, every drawing a training example. A `ClassDataset` keeps all drawings
# in one array, of which `class_indices` tells those of its own letters. The samplers divide by 255,
# and so do we.

images = train.examples[train.class_indices].astype(np.float32) / 255
labels = np.repeat(np.arange(train.num_classes), np.diff(train.class_offsets))
classifier = network(train.num_classes)
classifier.compile(
    optimizer=keras.optimizers.Adam(2e-3),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
classifier.fit(images, labels, batch_size=64, epochs=8, verbose=2)

# ## Its body, with a new head
#
# All layers but the last have the same shapes in both networks.

pretrained = network(WAYS)
for layer, learnt in zip(pretrained.layers[:-1], classifier.layers[:-1], strict=True):
    layer.set_weights(learnt.get_weights())

# There is a trap in this. The classifier's batch normalisation has moving statistics, which come
# along, but MAML with `batch_norm="transductive"` does not look at them: it normalises with the
# batch at hand, five images in the support set. The body is thus not quite the one that was
# trained, and what it is worth before any meta-training has to be measured, not assumed.

# ## MAML from both


def maml(model):
    learner = tfmeta.MAML(model, inner_learning_rate=0.4, inner_steps=1, evaluation_steps=3)
    learner.compile(
        optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(2e-3, EPOCHS * STEPS)
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return learner


learners = {"random weights": maml(network(WAYS)), "pre-trained": maml(pretrained)}
curves = {}
for name, learner in learners.items():
    before = tfmeta.evaluate(learner, watched, episodes=100, verbose=False)
    print(f"From {name}, before: {before}", flush=True)
    history = learner.fit(
        episodes.dataset(meta_batch_size=16),
        steps_per_epoch=STEPS,
        epochs=EPOCHS,
        validation_data=watched.dataset().take(100),
        verbose=2,
    )
    curves[name] = [before.mean, *history.history["val_accuracy"]]

# ## Test

for name, learner in learners.items():
    print(f"From {name}: {tfmeta.evaluate(learner, fresh, episodes=600, verbose=False)}")

# Here it was 88.6 % from random weights and 80.4 % from the classifier, which began lower,
# too: 31 against 48 % before any step of MAML. A classifier's body is made to tell the training
# letters apart by its moving statistics, not to change in one step of 0.4 with others. Pre-training
# is ordinary use, and has to earn its place by a measurement like this one.

figure = Figure(figsize=(6, 4), layout="constrained")
axes = figure.subplots()
for name, curve in curves.items():
    axes.plot(STEPS * np.arange(len(curve)), 100 * np.array(curve), "o-", label=f"from {name}")
axes.set_xlabel("steps of MAML")
axes.set_ylabel("validation accuracy (percent)")
axes.set_title("Five unseen letters, one example each")
axes.grid(alpha=0.3)
axes.legend()
figure.savefig("pretrained.png", dpi=120)
print("The picture is pretrained.png.")
