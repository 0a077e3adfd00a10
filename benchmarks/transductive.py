"""What answering queries together is worth, with queries of all classes alike and skewed.

A Prototypical Network is trained, or one that was trained is read from a file; its encoder computes
the test classes' features once, and each head answers the same 5-way 1-shot episodes of 75 queries:
15 of each class, or as many of each as a Dirichlet(2, …, 2) draws (Veilleux et al., 2021). Usage:

    python benchmarks/transductive.py --data-dir TFDS --steps 4000 --json RESULTS.json
    python benchmarks/transductive.py --data-dir TFDS --learner prototypical.keras
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import tfmeta
from tfmeta.data import Augmentation, EpisodeSampler, features

WAYS, QUERIES = 5, 75
HEADS = {
    "PrototypicalNetwork": tfmeta.PrototypicalNetwork,
    "SimpleShot": tfmeta.SimpleShot,
    "SoftKMeans, 1 step": lambda x: tfmeta.SoftKMeans(x, transductive=True),
    "SoftKMeans, cosine": lambda x: tfmeta.SoftKMeans(
        x, 5, transductive=True, distance="cosine", temperature=10.0
    ),
    "LabelPropagation": tfmeta.LabelPropagation,
    "LabelPropagation, symmetric, α = 0.5": lambda x: tfmeta.LabelPropagation(
        x, alpha=0.5, symmetric=True
    ),
    "α-TIM": tfmeta.TIM,
    "TIM": lambda x: tfmeta.TIM(x, alpha=1, marginal_weight=10.0),
}


class Skewed:
    """The episodes of a sampler of many queries, of which each class keeps a part by chance."""

    def __init__(self, sampler: EpisodeSampler) -> None:
        self.sampler = sampler

    def batch(self, step: int, meta_batch_size: int = 1) -> Any:
        inputs, targets = self.sampler.batch(step, meta_batch_size)
        random = np.random.default_rng([self.sampler.seed, step])
        counts = random.multinomial(QUERIES, random.dirichlet([2.0] * WAYS))
        kept = np.concatenate(
            [np.flatnonzero(targets[0] == k)[:n] for k, n in enumerate(counts.tolist())]
        )
        return {**inputs, "query_x": inputs["query_x"][:, kept]}, targets[:, kept]


def trained(train: Any, steps: int) -> tfmeta.PrototypicalNetwork:
    keras.utils.set_random_seed(0)
    learner = tfmeta.PrototypicalNetwork(tfmeta.models.conv4(train.example_shape))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    change = Augmentation(flip=True, crop=4)
    sampler = EpisodeSampler(train, 20, 1, 5, augmentation=change)
    learner.fit(sampler, steps_per_epoch=steps, verbose=2)
    return learner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar_fs")
    parser.add_argument("--data-dir")
    parser.add_argument("--learner", help="a .keras file of a learner with an encoder")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    train, _, test = tfmeta.data.load(arguments.data, data_dir=arguments.data_dir)
    if arguments.learner:
        learner = keras.models.load_model(arguments.learner)
    else:
        learner = trained(train, arguments.steps)
    # For SimpleShot's mean a part of the training classes is plenty.
    some, test = (
        features(learner.encoder, part, verbose=False) for part in (train.select(range(16)), test)
    )
    samplers = {
        "balanced": EpisodeSampler(test, WAYS, 1, QUERIES // WAYS, seed=3),
        "skewed": Skewed(EpisodeSampler(test, WAYS, 1, QUERIES, seed=3)),
    }
    rows = []
    print("| head | balanced | skewed |\n| --- | --- | --- |")
    for name, make in HEADS.items():
        head = make(keras.Sequential([keras.Input(test.example_shape), keras.layers.Identity()]))
        head.check_inputs(samplers["balanced"].batch(0)[0])
        if name == "SimpleShot":
            head.mean.assign(some.examples.mean(0))
        found = [
            tfmeta.evaluate(head, sampler, arguments.episodes, verbose=False)
            for sampler in samplers.values()
        ]
        scores = [(100 * x.mean, 100 * x.ci95) for x in found]
        print(f"| {name} | {' | '.join(f'{m:.2f} ± {c:.2f}' for m, c in scores)} |", flush=True)
        rows.append({"head": name, **dict(zip(samplers, scores, strict=True))})
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
