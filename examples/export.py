"""Shipping what was learnt: a service that learns new letters, in a program without this package.

We train a Prototypical Network on letters, and write two SavedModels: a classifier of five new
letters, and a learner that makes such a classifier of whatever examples it is sent. A second
process, in which this package cannot be imported, loads both and classifies drawings. Takes about
half a minute on two cores; run it with `python examples/export.py`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

import tfmeta
from tfmeta.export import Preprocessing

print("Takes about half a minute on two cores.", flush=True)
keras.utils.set_random_seed(0)

# ## Train
#
# As in `demo.py`, and shorter.

train, _, test = tfmeta.data.load("glyphs")
learner = tfmeta.PrototypicalNetwork(tfmeta.models.conv4(train.example_shape))
learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
episodes = tfmeta.data.EpisodeSampler(train, ways=20, shots=1, queries=5, seed=0)
learner.fit(episodes.dataset(), steps_per_epoch=100, epochs=2, verbose=2)

# ## A task
#
# Five letters that the network has not seen, three drawings of each to learn from.

sampler = tfmeta.data.EpisodeSampler(test, ways=5, shots=3, queries=10, seed=1)
inputs, targets = sampler.batch(0)
support_x, support_y, query_x = (inputs[k][0] for k in ("support_x", "support_y", "query_x"))
names = ["first", "second", "third", "fourth", "fifth"]

# ## Export
#
# The adapted model knows its five letters. The learner adapts when it is called; its preprocessing
# is inside, so that it takes images as a file has them: whole numbers, of any size.

folder = Path(tempfile.mkdtemp())
adapted = learner.adapt(support_x, support_y)
tfmeta.export.saved_model(adapted, folder / "five_letters", class_names=names)
learner.export(folder / "any_letters", preprocessing=Preprocessing(28, grayscale=True))

# ## Use
#
# What follows runs in another process. The first line makes sure of what this is about: importing
# `tfmeta` is an error there.

np.savez(
    folder / "task.npz",
    support_x=np.rint(support_x * 255).astype(np.uint8),
    support_y=support_y.astype(np.int64),
    query_x=np.rint(query_x * 255).astype(np.uint8),
)
program = """
import sys
sys.modules["tfmeta"] = None
import numpy as np
import tensorflow as tf

task = np.load("task.npz")

five_letters = tf.saved_model.load("five_letters")
answer = five_letters.predict(query_x=task["query_x"].astype("float32") / 255)

# The learner takes examples once, and then queries as often as one likes.
any_letters = tf.saved_model.load("any_letters")
learnt = any_letters.adapt(support_x=task["support_x"], support_y=task["support_y"])
again = any_letters.predict(query_x=task["query_x"], **learnt)

print("What is learnt:", {name: tuple(x.shape) for name, x in learnt.items()})
np.savez("answers.npz", adapted=answer["predictions"], learner=again["predictions"],
         labels=answer["labels"].numpy().astype(str))
"""
subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)

# ## Compare
#
# Both give the numbers that the adapted model has here.

answers = np.load(folder / "answers.npz")
here = adapted.predict(query_x, verbose=0)
print(f"\n{'SavedModel':14}{'size':>10}{'right there':>14}{'here':>8}{'largest difference':>21}")
for model, name in (("adapted", "five_letters"), ("learner", "any_letters")):
    there = answers[model]
    size = sum(part.stat().st_size for part in (folder / name).rglob("*") if part.is_file())
    right = [np.mean(x.argmax(axis=1) == targets[0]) for x in (there, here)]
    difference = np.abs(there - here).max() / np.abs(here).max()
    print(
        f"{name:14}{size / 1e6:7.2f} MB{100 * right[0]:12.0f} %{100 * right[1]:6.0f} %"
        f"{difference:21.1e}"
    )
each = ", ".join(answers["labels"][::10])
print(f"Guessing would give 20 %. One drawing of each letter was called: {each}.")
