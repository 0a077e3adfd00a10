"""Does meta-learning help a text classifier with intents of domains that it has never seen?

CLINC150 has ten domains of 15 intents with 150 utterances each. In alphabetical order the first six
domains are for training, the next two for validation, the last two for the test. A task is five
intents with one or five utterances of each to learn from. Usage, with the folder that holds
data_full.json and domains.json:

    python benchmarks/clinc150.py DATA_DIR --json benchmarks/results/clinc150.json

All contenders see the same test episodes.

scratch    the network of FOMAML with new random weights in each episode, trained by Adam on the
           support set; rate and number of steps are the best on 50 validation episodes.
tf-idf     no network: the nearest class mean of tf-idf vectors by cosine. It knows every word.
tf-idf*    the same, but it knows the words of the training domains only.

The networks know the words of the training domains. With one bucket, any other word is [UNK]; with
1,000 it is hashed to one of as many vectors, which no utterance has shaped.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import tfmeta
from tfmeta.data import ClassDataset, EpisodeSampler

WAYS, QUERIES = 5, 15
LENGTH = 20  # words; one utterance in two hundred is longer, and cut
PADDING = 0  # the buckets of unknown words are numbered from 1
SCRATCH_RATES, SCRATCH_STEPS = (0.003, 0.01), (10, 50)


class Clinc150:
    """The utterances, as texts and as numbers of words, and the three parts of the intents."""

    def __init__(self, data_dir: Path, buckets: int) -> None:
        data = json.loads((data_dir / "data_full.json").read_text(encoding="utf-8"))
        domains = json.loads((data_dir / "domains.json").read_text(encoding="utf-8"))
        pairs = [pair for part in ("train", "val", "test") for pair in data[part]]
        self.words = [re.sub(r"[^\w\s]", "", text.lower()).split() for text, _ in pairs]
        self.intents = [intent for _, intent in pairs]
        names = sorted(domains)
        self.parts = [
            sorted(intent.replace(" ", "_") for name in part for intent in domains[name])
            for part in (names[:6], names[6:8], names[8:])
        ]
        trained = set(self.parts[0])
        self.known = collections.Counter(
            word
            for words, intent in zip(self.words, self.intents, strict=True)
            if intent in trained
            for word in set(words)
        )
        lookup = keras.layers.StringLookup(
            vocabulary=sorted(self.known), mask_token="", num_oov_indices=buckets
        )
        padded = [(words + [""] * LENGTH)[:LENGTH] for words in self.words]
        # The sampler hands on integers as they are.
        self.tokens = lookup(tf.constant(padded)).numpy().astype(np.int32)
        self.buckets, self.size = buckets, lookup.vocabulary_size()

    def split(self, examples: Any) -> list[ClassDataset]:
        """Return training, validation and test classes, with whatever stands for an utterance."""
        return [ClassDataset(examples, self.intents).select(part) for part in self.parts]


class HideWords(keras.layers.Layer):
    """Make a share of the words unknown ones in training, so that these get a meaning."""

    def __init__(self, rate: float, buckets: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate, self.buckets = rate, buckets
        self.seed = keras.random.SeedGenerator(0)

    def call(self, tokens: Any, training: bool | None = None) -> Any:
        if not training:
            return tokens
        shape = keras.ops.shape(tokens)
        hidden = keras.random.uniform(shape, seed=self.seed) < self.rate
        unknown = keras.random.randint(shape, 1, self.buckets + 1, seed=self.seed)
        return keras.ops.where(keras.ops.logical_and(hidden, tokens != PADDING), unknown, tokens)


def network(clinc: Clinc150, outputs: int | None = None) -> keras.Model:
    """Return word vectors, their mean with learnt weights, brought to a length of 2."""
    tokens = keras.Input((LENGTH,), dtype="int32")
    seen = HideWords(0.3, clinc.buckets)(tokens)
    normal = keras.initializers.RandomNormal(stddev=0.1)
    vectors = keras.layers.Embedding(clinc.size, 256, embeddings_initializer=normal)(seen)
    scores = keras.layers.Embedding(clinc.size, 1, embeddings_initializer="zeros")(seen)
    mask = keras.ops.expand_dims(keras.ops.not_equal(tokens, PADDING), -1)
    weights = keras.layers.Softmax(axis=1)(scores, mask=mask)
    mean = keras.layers.Flatten()(keras.layers.Dot(axes=1)([weights, vectors]))
    encoded = keras.layers.Rescaling(2.0)(keras.layers.UnitNormalization()(mean))
    if outputs is not None:
        encoded = keras.layers.Dense(outputs)(encoded)
    return keras.Model(tokens, encoded)


# name: learner
METHODS: dict[str, Any] = {
    "FOMAML": lambda clinc: tfmeta.FOMAML(network(clinc, WAYS), 5.0, 3),
    "MAML": lambda clinc: tfmeta.MAML(network(clinc, WAYS), 5.0, 3),
    "ProtoMAML": lambda clinc: tfmeta.ProtoMAML(network(clinc), 5.0, 3, first_order=True),
    "Prototypical Network": lambda clinc: tfmeta.PrototypicalNetwork(
        network(clinc), temperature=4.0
    ),
}


def loss() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def train(
    name: str, clinc: Clinc150, classes: ClassDataset, shots: int, steps: int
) -> tuple[tfmeta.MetaLearner, float]:
    """Return a trained learner and the seconds that this took, tracing included."""
    keras.utils.set_random_seed(0)
    start = time.perf_counter()
    learner = METHODS[name](clinc)
    schedule = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    learner.compile(keras.optimizers.Adam(schedule), loss(), metrics=["accuracy"])
    sampler = EpisodeSampler(classes, WAYS, shots, queries=5, seed=0)
    learner.fit(sampler.dataset(meta_batch_size=8), steps_per_epoch=steps, verbose=2)
    return learner, time.perf_counter() - start


class Scratch:
    """The network with new weights in each episode, trained on nothing but the support set."""

    def __init__(self, clinc: Clinc150, rate: float) -> None:
        self.clinc, self.model = clinc, network(clinc, WAYS)
        self.optimizer = keras.optimizers.Adam(rate)
        self.optimizer.build(self.model.trainable_variables)
        self.fresh = [variable.numpy() for variable in self.optimizer.variables]

    def accuracies(self, inputs: Any, targets: Any, marks: tuple[int, ...]) -> list[float]:
        """Return the accuracy on the queries after so many steps, and so many, ..."""
        self.model.set_weights(network(self.clinc, WAYS).get_weights())
        for variable, value in zip(self.optimizer.variables, self.fresh, strict=True):
            variable.assign(value)
        accuracies, done = [], 0
        for mark in marks:
            self._train(inputs["support_x"][0], inputs["support_y"][0], tf.constant(mark - done))
            done = mark
            predicted = self.model(inputs["query_x"][0]).numpy().argmax(axis=1)
            accuracies.append(float(np.mean(predicted == targets[0])))
        return accuracies

    @tf.function(reduce_retracing=True)
    def _train(self, x: Any, y: Any, steps: Any) -> None:
        for _ in tf.range(steps):
            with tf.GradientTape() as tape:
                value = loss()(y, self.model(x, training=False))
            variables = self.model.trainable_variables
            self.optimizer.apply(tape.gradient(value, variables), variables)


def best_scratch(clinc: Clinc150, validation: EpisodeSampler) -> tuple[float, int]:
    """Return the rate and the number of steps that are best on 50 validation episodes."""
    scores = {}
    for rate in SCRATCH_RATES:
        keras.utils.set_random_seed(0)
        scratch = Scratch(clinc, rate)
        table = [
            scratch.accuracies(*validation.batch(episode), SCRATCH_STEPS) for episode in range(50)
        ]
        for steps, score in zip(SCRATCH_STEPS, np.mean(table, axis=0), strict=True):
            print(f"  scratch, Adam({rate}), {steps} steps: {100 * score:.2f}", flush=True)
            scores[rate, steps] = score
    return max(scores, key=lambda key: scores[key])


def tf_idf(clinc: Clinc150, all_words: bool) -> Any:
    """Return a function of utterances' numbers that gives their vectors, of length 1."""
    documents = sum(intent in set(clinc.parts[0]) for intent in clinc.intents)
    columns: dict[str, int] = {}

    def vectors(numbers: Any) -> Any:
        counts = [collections.Counter(clinc.words[number]) for number in numbers]
        rows = np.zeros([len(counts), 10_000], np.float32)
        for row, words in zip(rows, counts, strict=True):
            for word, count in words.items():
                if all_words or word in clinc.known:
                    idf = 1 + math.log((1 + documents) / (1 + clinc.known[word]))
                    row[columns.setdefault(word, len(columns))] = count * idf
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)

    return vectors


def nearest_mean(vectors: Any, inputs: Any, targets: Any) -> float:
    support, query = (vectors(inputs[name][0, :, 0]) for name in ("support_x", "query_x"))
    means = support.reshape(WAYS, -1, support.shape[1]).mean(axis=1)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)
    return float(np.mean((query @ means.T).argmax(axis=1) == targets[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--buckets", type=int, nargs="+", default=[1, 1000])
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    part = 1 if arguments.split == "validation" else 2
    rows: list[dict[str, Any]] = []

    def add(
        name: str, buckets: int | None, shots: int, scores: Any, seconds: float, **more: Any
    ) -> None:
        result = tfmeta.Evaluation(np.asarray(scores), "accuracy")
        rows.append(
            {
                "method": name,
                "buckets": buckets,
                "shots": shots,
                "accuracy": 100 * result.mean,
                "ci95": 100 * result.ci95,
                "seconds": seconds,
                **more,
            }
        )
        print(f"{name}, {buckets} buckets, {shots} shots: {result}, {seconds:.0f} s", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=2) + "\n")

    for buckets in arguments.buckets:
        clinc = Clinc150(arguments.data_dir, buckets)
        tokens, numbers = (
            clinc.split(x)
            for x in (clinc.tokens, np.arange(len(clinc.tokens), dtype=np.int32)[:, None])
        )
        for shots in arguments.shots:
            # Where the classes are alike, a seed draws the same episodes from all data sets.
            episodes = EpisodeSampler(tokens[part], WAYS, shots, QUERIES, seed=1)
            if not arguments.no_rivals:
                start = time.perf_counter()
                validation = EpisodeSampler(tokens[1], WAYS, shots, QUERIES, seed=2)
                rate, steps = best_scratch(clinc, validation)
                keras.utils.set_random_seed(0)
                scratch = Scratch(clinc, rate)
                scores = [
                    scratch.accuracies(*episodes.batch(episode), (steps,))[0]
                    for episode in range(arguments.episodes)
                ]
                seconds = time.perf_counter() - start
                add("scratch", buckets, shots, scores, seconds, rate=rate, steps=steps)
            if not arguments.no_rivals and buckets == arguments.buckets[0]:
                same = EpisodeSampler(numbers[part], WAYS, shots, QUERIES, seed=1)
                for name, all_words in (("tf-idf", True), ("tf-idf*", False)):
                    start = time.perf_counter()
                    vectors = tf_idf(clinc, all_words)
                    scores = [
                        nearest_mean(vectors, *same.batch(episode))
                        for episode in range(arguments.episodes)
                    ]
                    add(name, None, shots, scores, time.perf_counter() - start)
            for name in arguments.methods:
                learner, seconds = train(name, clinc, tokens[0], shots, arguments.steps)
                result = tfmeta.evaluate(learner, episodes, arguments.episodes, verbose=False)
                add(name, buckets, shots, result.per_episode, seconds)


if __name__ == "__main__":
    main()
