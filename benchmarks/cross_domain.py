"""What is a learner worth on data that are unlike those it was trained on?

Prototypical Networks with a strided `conv4` of 64 filters on grey images of 28x28, each trained for
`--steps` steps of 20-way 1-shot tasks: on letters of fonts (`glyphs`), on Omniglot, on CIFAR-FS,
and on Omniglot and CIFAR-FS together, half of the steps each. All are scored on the same episodes
of the test classes of the three data sets, 5-way 1-shot and 15 queries a class, beside class means
on the raw pixels and on the network before training. Usage:

    python benchmarks/cross_domain.py --data-dir TFDS --json benchmarks/results/cross_domain.json
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

import tfmeta
from tfmeta.data import EpisodeSampler, Mixture, resize

SHAPE = (28, 28, 1)
NAMES = ("glyphs", "omniglot", "cifar_fs")


def encoder() -> keras.Model:
    keras.utils.set_random_seed(0)
    return tfmeta.models.conv4(SHAPE, filters=64, downsample="stride")


def trained(sampler: Any, steps: int) -> tuple[tfmeta.PrototypicalNetwork, float]:
    """Return a learner that was trained on a source or a mixture, and for how many seconds."""
    learner = tfmeta.PrototypicalNetwork(encoder())
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    learner.compile(
        keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    begin = time.perf_counter()
    learner.fit(sampler.dataset(), steps_per_epoch=steps, verbose=0)
    return learner, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    train, test = {}, {}
    for name in NAMES:
        data_dir = None if name == "glyphs" else arguments.data_dir
        options = {"preset": "maml"} if name == "omniglot" else {}
        parts = tfmeta.data.load(name, data_dir, **options)
        train[name] = EpisodeSampler(resize(parts[0], SHAPE), 20, 1, 5, seed=0)
        test[name] = EpisodeSampler(resize(parts[2], SHAPE), 5, 1, 15, seed=1)
    both = Mixture({name: train[name] for name in NAMES[1:]})
    learners: dict[str, Any] = {}
    seconds = {}
    for name, sampler in {**train, "omniglot and cifar_fs": both}.items():
        learners[f"on {name}"], seconds[name] = trained(sampler, arguments.steps)
        print(f"trained on {name}: {seconds[name]:.0f} s", flush=True)
    learners["untrained"] = tfmeta.SimpleShot(encoder(), centre=False)
    suite = tfmeta.evaluate_suite(learners, test, arguments.episodes, verbose=False)
    print(suite)
    if arguments.json:
        versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
        found = {"steps": arguments.steps, "seconds": seconds, "versions": versions}
        arguments.json.write_text(json.dumps({**found, "data_sets": suite.as_dict()}, indent=1))


if __name__ == "__main__":
    main()
