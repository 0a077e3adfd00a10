"""Serving what was learnt: a service that is sent examples, and tells drawings apart from then on.

We train a Prototypical Network on letters and export it. `server.py`, beside this file, serves the
export over HTTP; it imports TensorFlow and not this package. Here it is started on a free port of
this machine, asked by two clients with letters of their own, and stopped. Takes about half a
minute on two cores; run it with `python examples/serve.py`, after `pip install '.[serve]'`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import keras
import numpy as np

import tfmeta
from tfmeta.export import Preprocessing

print("Takes about half a minute on two cores.", flush=True)
keras.utils.set_random_seed(0)

# ## Train and export
#
# As in `export.py`. The preprocessing is inside, so that clients send images as a file has them.

train, _, test = tfmeta.data.load("glyphs")
learner = tfmeta.PrototypicalNetwork(tfmeta.models.conv4(train.example_shape))
learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
episodes = tfmeta.data.EpisodeSampler(train, ways=20, shots=1, queries=5, seed=0)
learner.fit(episodes.dataset(), steps_per_epoch=100, epochs=2, verbose=2)

path = Path(tempfile.mkdtemp()) / "any_letters"
learner.export(path, preprocessing=Preprocessing(28, grayscale=True))

# ## Serve
#
# The server says its address when it is ready.

program = Path(__file__).with_name("server.py")
server = subprocess.Popen(
    [sys.executable, program, path, "--port", "0"], stdout=subprocess.PIPE, text=True
)
address = server.stdout.readline().strip()
print(f"Serving at {address}.")


def post(endpoint, **body):
    request = urllib.request.Request(address + endpoint, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


try:
    # ## Adapt
    #
    # Two clients, each with five letters that the network has not seen, three drawings of each.

    sampler = tfmeta.data.EpisodeSampler(test, ways=5, shots=3, queries=10, seed=1)
    clients = []
    for number in range(2):
        inputs, targets = sampler.batch(number)
        images = {k: np.rint(inputs[k][0] * 255).astype(np.uint8) for k in ("support_x", "query_x")}
        labels = inputs["support_y"][0]
        answer = post("/adapt", support_x=images["support_x"].tolist(), support_y=labels.tolist())
        clients.append((answer["task"], images, labels, targets[0]))

    # ## Predict, and compare with the same computed here

    print(f"\n{'client':8}{'right':>8}{'milliseconds':>15}{'largest difference to here':>29}")
    for number, (task, images, labels, targets) in enumerate(clients):
        begin = time.perf_counter()
        answer = post("/predict", task=task, query_x=images["query_x"].tolist())
        taken = time.perf_counter() - begin
        there = np.array(answer["predictions"])
        support_x, query_x = (np.float32(images[k]) / 255 for k in ("support_x", "query_x"))
        here = learner.adapt(support_x, labels).predict(query_x, verbose=0)
        right = 100 * np.mean(there.argmax(axis=1) == targets)
        difference = np.abs(there - here).max() / np.abs(here).max()
        print(f"{number:6}{right:8.0f} %{1000 * taken:15.0f}{difference:29.1e}")
    print(f"The time is that of {len(targets)} drawings; guessing would give 20 %.\n")

    # ## What is wrong is said
    #
    # The words are those of the checks that the export has inside.

    try:
        post("/adapt", support_x=images["support_x"].tolist(), support_y=[0, 1, 2])
    except urllib.error.HTTPError as error:
        print(f"Three labels for 15 drawings: {error.code}, {json.load(error)['error']}")
finally:
    server.terminate()
    server.communicate()
