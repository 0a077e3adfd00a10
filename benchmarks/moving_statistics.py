"""How soon do batch normalisation's running statistics serve, by their momentum?

A Prototypical Network learns glyphs. The momentum does not change what is learnt, because training
normalises with the batch at hand, so one training does for all: the statistics of each momentum are
kept beside it. At each mark the same weights are scored on validation episodes (5-way 1-shot) with
each of them, and with the plain mean over 20 further batches, computed anew. Usage:

    python benchmarks/moving_statistics.py --json RESULTS.json
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

MOMENTA = (0.8, 0.9, 0.95, 0.99)
ANEW = 20


class Follow(keras.callbacks.Callback):
    """Keeps the statistics of each momentum from those of each batch."""

    def __init__(self, layers: list[Any]) -> None:
        super().__init__()
        self.layers = layers
        self.kept = {
            momentum: [np.asarray(value, np.float64) for value in statistics(layers)]
            for momentum in MOMENTA
        }

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        batch_of = statistics(self.layers)
        for momentum, kept in self.kept.items():
            self.kept[momentum] = [
                momentum * old + (1 - momentum) * new
                for old, new in zip(kept, batch_of, strict=True)
            ]


def statistics(layers: list[Any]) -> list[np.ndarray]:
    return [v.numpy() for x in layers for v in (x.moving_mean, x.moving_variance)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", type=int, nargs="+", default=[20, 5])
    parser.add_argument("--marks", type=int, nargs="+", default=[50, 100, 200, 600])
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    train, validation, _ = tfmeta.data.load("glyphs")
    watched = tfmeta.data.EpisodeSampler(validation, ways=5, shots=1, queries=15, seed=0)
    rows = []
    for ways in arguments.ways:
        keras.utils.set_random_seed(arguments.seed)
        sampler = tfmeta.data.EpisodeSampler(train, ways, 1, 5, seed=arguments.seed)
        model = tfmeta.models.conv4(train.example_shape)
        layers = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
        for layer in layers:
            layer.momentum = 0.0  # what is stored is the batch's own
        learner = tfmeta.PrototypicalNetwork(model)
        learner.compile(
            keras.optimizers.Adam(1e-3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        follow = Follow(layers)
        for start, mark in zip([0, *arguments.marks], arguments.marks, strict=False):
            learner.fit(
                sampler.dataset(start=start),
                steps_per_epoch=mark - start,
                callbacks=[follow],
                verbose=0,
            )
            batches = []
            for step in range(ANEW):
                inputs, _ = sampler.batch(arguments.marks[-1] + step)
                model(np.concatenate([inputs["support_x"], inputs["query_x"]], 1)[0], training=True)
                batches.append(statistics(layers))
            anew = [np.mean(of, axis=0) for of in zip(*batches, strict=True)]
            row: dict[str, Any] = {"ways": ways, "steps": mark}
            for name, values in {**follow.kept, "anew": anew}.items():
                for layer, mean, variance in zip(layers, values[::2], values[1::2], strict=True):
                    layer.moving_mean.assign(mean)
                    layer.moving_variance.assign(variance)
                score = tfmeta.evaluate(learner, watched, arguments.episodes, verbose=False)
                row[str(name)] = round(100 * float(score.mean), 2)
            rows.append(row)
            print(json.dumps(row), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
