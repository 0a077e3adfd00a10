"""Is a search worth its trials? TPE, which learns from the trials before, and random draws.

Each trial trains a Prototypical Network on glyphs for the same few steps, with no pruning, so that
all have the same budget; its score is the accuracy on the same validation episodes. The best of
each search is trained once more and scored on test episodes. Usage:

    python benchmarks/tuning.py --json RESULTS.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import tfmeta
from tfmeta import run_data, training, tuning
from tfmeta.runs import Run, Settings

SPACE = {
    "learning_rate": "0.00001:1.0:log",
    "ways": "2:30",
    "filters": "4,8,16,32",
    "distance": "squared_euclidean,cosine",
}
SETTINGS = Settings(
    data="glyphs",
    data_options={},
    algorithm="prototypical",
    ways=20,
    shots=1,
    queries=5,
    meta_batch_size=1,
    steps=30,
    epochs=2,
    learning_rate=1e-3,
    learning_rate_halving=None,
    inner_learning_rate=0.4,
    inner_steps=1,
    evaluation_steps=None,
    batch_norm="transductive",
    downsample="stride",
    filters=16,
    distance="squared_euclidean",
    validation_episodes=100,
    seed=0,
)


def search(sampler: str, trials: int, seed: int, folder: Path) -> dict[str, Any]:
    settings = dataclasses.replace(SETTINGS, seed=seed)
    parts = run_data.load_data(settings)
    settings = run_data.settled(settings, parts)
    run = Run(folder / f"{sampler}-{seed}")
    begin = time.perf_counter()
    study = tuning.tune(settings, run, parts, SPACE, trials, sampler=sampler, pruner="none")
    seconds = time.perf_counter() - begin
    test = training.evaluation_sampler(run.settings(), parts[2], queries=15, seed=1)
    score = tfmeta.evaluate(run.learner(), test, episodes=300, verbose=False)
    # A trial that diverged has no score: it is worse than any.
    scores = [t.value if t.value is not None else 0.0 for t in study.get_trials()]
    return {
        "sampler": sampler,
        "seed": seed,
        "scores": scores,
        "best": max(scores),
        "median": float(np.median(scores)),
        "median_after_ten": float(np.median(scores[10:])),
        "best_params": study.best_params,
        "test_accuracy": score.mean,
        "test_ci95": score.ci95,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            for sampler in ("tpe", "random"):
                rows.append(search(sampler, arguments.trials, seed, Path(folder)))
                shown = {k: v for k, v in rows[-1].items() if k != "scores"}
                print(json.dumps(shown), flush=True)
                if arguments.json:
                    arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
