"""Looking for good settings instead of guessing them, and how far to believe the result.

A Prototypical Network has a few numbers that nobody knows beforehand: the learning rate, how many
letters a training task should have, how wide the network should be. We try twelve settings for some
seconds each, let a search choose the later ones by what it saw of the earlier ones, and train with
the best for longer. Then we ask whether the learner's probabilities mean what they say, for letters
that it has never seen. Takes about a minute on two cores; needs `pip install 'tfmeta[tune]'`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tempfile

import keras

import tfmeta
from tfmeta import plots, tuning

print("Takes about a minute on two cores.", flush=True)
train, validation, test = tfmeta.data.load("glyphs")


def sampler(part, ways, queries, seed):
    return tfmeta.data.EpisodeSampler(part, ways, shots=1, queries=queries, seed=seed)


# ## The objective
#
# A search needs a function from values to a score. Ours builds a learner with the values, trains it
# and returns its accuracy on validation episodes. These must be the same for every trial, or luck
# with episodes would be taken for good settings; they are, because episodes depend on the sampler's
# seed only. The callbacks report to the search after each epoch, and end a trial that is worse than
# most others were by then.


def trained(values, epochs, callbacks=(), verbose=0):
    keras.utils.set_random_seed(0)
    encoder = tfmeta.models.conv4(
        train.example_shape, filters=values["filters"], downsample="stride"
    )
    learner = tfmeta.PrototypicalNetwork(encoder)
    learner.compile(
        optimizer=keras.optimizers.Adam(values["learning_rate"]),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = learner.fit(
        sampler(train, values["ways"], queries=5, seed=0).dataset(),
        steps_per_epoch=25,
        epochs=epochs,
        validation_data=sampler(validation, 5, queries=5, seed=0).dataset().take(60),
        callbacks=list(callbacks),
        verbose=verbose,
    )
    return learner, history.history["val_accuracy"][-1]


def objective(values, callbacks):
    return trained(values, epochs=2, callbacks=callbacks)[1]


# ## The search
#
# `low:high` is a range, of integers where both ends are, `log` has each order of magnitude be as
# likely as another, and commas stand between choices. Trials are kept in a file: interrupt this
# where you like, and with a `path` that stays it goes on where it was.

space = {"learning_rate": "0.00001:0.3:log", "ways": "3:30", "filters": "8,16,32"}
with tempfile.TemporaryDirectory() as folder:
    study = tuning.search(objective, space, f"{folder}/trials.db", trials=12)
    best, trials = study.best_params, study.trials  # while the file is there
for trial in trials:
    score = "ended early" if trial.value is None else f"{100 * trial.value:.1f} %"
    print(f"  trial {trial.number:2}: {score:12} {trial.params}")
print(f"Best: {best}")

# The best score is that of the luckiest of twelve on these episodes, and so a little too good. What
# it is worth is for the test to say.

learner, _ = trained(best, epochs=8)

# ## How far to believe it
#
# `uncertainty` is `evaluate` with more questions. The test letters come in episodes of ten, of
# which the support set shows five: the queries of the other five have no right answer, and a
# learner that knows what it does not know is less sure of them. Softmax of distances is often too
# sure or not sure enough; one temperature, fitted on validation letters, mends most of that.

fresh = sampler(test, ways=5, queries=15, seed=1)
mixed = sampler(test, ways=10, queries=15, seed=1)
watched = sampler(validation, ways=5, queries=15, seed=1)

plain = tfmeta.uncertainty(learner, mixed, 100, support_ways=5, verbose=False)
print(f"\nAs it is: {plain}")
scaled = tfmeta.uncertainty(learner, mixed, 100, watched, support_ways=5, verbose=False)
print(f"\nWith a temperature: {scaled}")
print(f"\nAccuracy {tfmeta.evaluate(learner, fresh, episodes=200, verbose=False)}")

# In the picture bars should end at the diagonal: of the answers given with 80 % confidence,
# 80 % should be right.

for result, name in ((plain, "before"), (scaled, "after")):
    path = f"reliability_{name}.png"
    title = f"Temperature {result.temperature:.2f}"
    plots.reliability_diagram(result.probabilities, result.labels, path, title=title)
    print(f"The picture is {path}.")
