"""What do heads make of text vectors that were trained before, beside tf-idf with a classifier?

The vectors are WordLlama's of 256 numbers, which its package ships (`pip install wordllama`); they
are computed once. CLINC150 is split as in clinc150.py: intents of six domains to train, of two to
validate, of the last two for the test. A task is five intents with one or five utterances of each.
Usage, with the folder that holds data_full.json and domains.json:

    python benchmarks/frozen_text.py DATA_DIR --json benchmarks/results/frozen_text.json

All see the same test episodes. `as it is` is a head on the vectors; `trained` one that learnt from
episodes of the training domains for a few seconds; tf-idf with logistic regression is fitted to
each support set, its words and their weights being those of all utterances.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import sklearn.feature_extraction.text
import sklearn.linear_model

import tfmeta
from tfmeta.data import ClassDataset, EpisodeSampler

WAYS, QUERIES = 5, 15


def identity() -> keras.Model:
    """Return an encoder for vectors that are embeddings already."""
    return keras.Sequential([keras.Input((256,)), keras.layers.Identity()])


def projection() -> keras.Model:
    """Return a matrix that leaves vectors as they are, to be trained from there."""
    return keras.Sequential(
        [keras.Input((256,)), keras.layers.Dense(256, kernel_initializer="identity")]
    )


AS_IT_IS: dict[str, Callable[[], tfmeta.MetaLearner]] = {
    "SimpleShot, centred by the training domains": lambda: tfmeta.SimpleShot(identity()),
    "KNearestNeighbors(1)": lambda: tfmeta.KNearestNeighbors(identity(), 1),
    "LogisticRegression": lambda: tfmeta.LogisticRegression(identity()),
    "R2D2": lambda: tfmeta.R2D2(identity()),
    "MetaOptNet": lambda: tfmeta.MetaOptNet(identity()),
    "BaselinePlusPlus": lambda: tfmeta.BaselinePlusPlus(identity()),
    "MatchingNetwork": lambda: tfmeta.MatchingNetwork(identity()),
    "LabelPropagation (transductive)": lambda: tfmeta.LabelPropagation(identity()),
    "TIM (transductive)": lambda: tfmeta.TIM(identity()),
}
TRAINED: dict[str, Callable[[], tfmeta.MetaLearner]] = {
    "PrototypicalNetwork, a trained projection": lambda: tfmeta.PrototypicalNetwork(
        projection(), "cosine", 10.0
    ),
    "R2D2, a trained projection": lambda: tfmeta.R2D2(projection()),
    # Of vectors of length 1 its logits would be small.
    "MetaOptNet, a trained projection": lambda: tfmeta.MetaOptNet(projection(), scale=30.0),
    "FEAT, trained": lambda: tfmeta.FEAT(identity()),
}


def vectors_of(texts: list[str]) -> Any:
    """Return WordLlama's vectors `[n, 256]`, of length 1."""
    import wordllama

    # The tokenizer lies beside the weights in the package, where it is not looked for.
    own = Path(wordllama.__file__).parent
    model = wordllama.WordLlama.load(dim=256, cache_dir=own, disable_download=True)
    return np.asarray(model.embed(texts, norm=True), np.float32)


def parts_of(data_dir: Path) -> tuple[list[str], list[str], list[list[str]]]:
    """Return the utterances, their intents, and the intents of the three parts."""
    data = json.loads((data_dir / "data_full.json").read_text(encoding="utf-8"))
    domains = json.loads((data_dir / "domains.json").read_text(encoding="utf-8"))
    pairs = [pair for part in ("train", "val", "test") for pair in data[part]]
    names = sorted(domains)
    parts = [
        sorted(intent.replace(" ", "_") for name in part for intent in domains[name])
        for part in (names[:6], names[6:8], names[8:])
    ]
    texts, intents = zip(*pairs, strict=True)
    return list(texts), list(intents), parts


def compiled(learner: tfmeta.MetaLearner) -> tfmeta.MetaLearner:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.Adam(3e-4), loss, metrics=["accuracy"])
    return learner


def tf_idf(words: Any, numbers: EpisodeSampler, episodes: int) -> Any:
    """Return the accuracies of logistic regression on tf-idf, fitted to each support set."""
    scores = []
    for episode in range(episodes):
        inputs, targets = numbers.batch(episode)
        support, query = (words[inputs[k][0, :, 0]] for k in ("support_x", "query_x"))
        classifier = sklearn.linear_model.LogisticRegression(C=10.0, max_iter=1000)
        classifier.fit(support, inputs["support_y"][0])
        scores.append(np.mean(classifier.predict(query) == targets[0]))
    return np.array(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--steps", type=int, default=300, help="of training")
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    texts, intents, parts = parts_of(arguments.data_dir)
    start = time.perf_counter()
    vectors = vectors_of(texts)
    print(f"{len(vectors)} vectors in {time.perf_counter() - start:.1f} s", flush=True)
    classes = [ClassDataset(vectors, intents).select(part) for part in parts]
    # Where the classes are alike, a seed draws the same episodes from all data sets.
    order = np.arange(len(texts), dtype=np.int32)[:, None]
    numbers = ClassDataset(order, intents).select(parts[2])
    words = sklearn.feature_extraction.text.TfidfVectorizer().fit_transform(texts)
    rows: list[dict[str, Any]] = []
    for shots in arguments.shots:
        test = EpisodeSampler(classes[2], WAYS, shots, QUERIES, seed=1)
        training = EpisodeSampler(classes[0], WAYS, shots, QUERIES, seed=0)

        def add(name: str, scores: Any, shots: int = shots, **seconds: float) -> None:
            result = tfmeta.Evaluation(np.asarray(scores), "accuracy")
            rows.append(
                {
                    "method": name,
                    "shots": shots,
                    "accuracy": 100 * result.mean,
                    "ci95": 100 * result.ci95,
                    **seconds,
                }
            )
            said = ", ".join(f"{key} {value:.2f}" for key, value in seconds.items())
            print(f"{shots} shots, {name}: {result}, {said}", flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=2) + "\n")

        start = time.perf_counter()
        scores = tf_idf(words, EpisodeSampler(numbers, WAYS, shots, QUERIES, seed=1), 600)
        each = 1000 * (time.perf_counter() - start) / 600
        add("tf-idf with logistic regression", scores[: arguments.episodes], ms_an_episode=each)
        for name, make in {**AS_IT_IS, **TRAINED}.items():
            keras.utils.set_random_seed(0)
            learner = compiled(make())
            start = time.perf_counter()
            if name in TRAINED:
                learner.fit(training.dataset(8), steps_per_epoch=arguments.steps, verbose=0)
            elif isinstance(learner, tfmeta.SimpleShot):
                learner.fit(training.dataset(8), steps_per_epoch=50, verbose=0)
            training_time = time.perf_counter() - start
            tfmeta.evaluate(learner, test, 32, verbose=False)  # traced once
            start = time.perf_counter()
            result = tfmeta.evaluate(learner, test, arguments.episodes, verbose=False)
            each = 1000 * (time.perf_counter() - start) / arguments.episodes
            add(name, result.per_episode, ms_an_episode=each, training_s=training_time)


if __name__ == "__main__":
    main()
