"""Learning to learn with gradients: MAML on handwritten characters.

MAML looks for initial weights from which one gradient step on five drawings, one of each of five
characters, gives a network that knows the five. Takes about twenty minutes on two cores. Omniglot
is read from, or downloaded to, the folder of TensorFlow Datasets; another one can be given:
`python examples/maml_omniglot.py FOLDER`.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import tfmeta
from tfmeta import plots

print("Takes about twenty minutes on two cores.", flush=True)
keras.utils.set_random_seed(0)
data_dir = sys.argv[1] if len(sys.argv) > 1 else None

# ## Data
#
# Vinyals' split of the 1,623 characters; each is four classes, one for each quarter turn.

train, validation, test = tfmeta.data.load("omniglot", data_dir=data_dir)
print(test.description)

# ## Learner
#
# The network is the one of the paper's Omniglot experiments, with strides instead of pooling. The
# inner step is taken on the mean loss of the support set; the paper's code leaves the loss of the
# five examples apart, so that its rate of 0.4 is one of 2.0 here. A smaller one is safer to begin
# with.

WAYS = 5
learner = tfmeta.MAML(
    tfmeta.models.conv4(train.example_shape, outputs=WAYS, downsample="stride"),
    inner_learning_rate=0.4,
    inner_steps=1,
    evaluation_steps=3,
)
learner.compile(
    optimizer=keras.optimizers.Adam(
        keras.optimizers.schedules.ExponentialDecay(3e-3, decay_steps=2000, decay_rate=0.5)
    ),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)

# ## Training
#
# A meta-batch is 16 tasks. The gradient of each task's query loss goes through its inner step, to
# second order; `tfmeta.FOMAML` would leave the second derivatives out. A tenth of the epochs shows
# the principle.

episodes = tfmeta.data.EpisodeSampler(train, ways=WAYS, shots=1, queries=5, seed=0)
watched = tfmeta.data.EpisodeSampler(validation, ways=WAYS, shots=1, queries=5, seed=0)
learner.fit(
    episodes.dataset(meta_batch_size=16),
    steps_per_epoch=300,
    epochs=25,
    validation_data=watched.dataset().take(100),
)

# ## Test
#
# Batch normalisation is transductive, as in the paper: the queries are normalised together. The
# score says so, because it would be lower if they came one by one.

fresh = tfmeta.data.EpisodeSampler(test, ways=WAYS, shots=1, queries=5, seed=1)
result = tfmeta.evaluate(learner, fresh, episodes=600)
print(f"{WAYS}-way 1-shot, batch norm {learner.batch_norm}: {result}")

# The trained learner is one file. Loaded again, it adapts to whatever five classes it is shown.

learner.save("maml_omniglot.keras")
inputs, targets = fresh.batch(0)
support_x, support_y, query_x = (inputs[k][0] for k in ("support_x", "support_y", "query_x"))
adapted = keras.models.load_model("maml_omniglot.keras").adapt(support_x, support_y)
predictions = adapted.predict(query_x, verbose=0).argmax(axis=1)
right = int((predictions == targets[0]).sum())
plots.episode(
    support_x,
    support_y,
    query_x,
    targets[0],
    predictions,
    "maml_omniglot.png",
    title=f"Three steps on one drawing of each: {right} of {len(predictions)} right",
)
print("The picture is maml_omniglot.png.")
