"""How near do the published scores come, with the published settings and a limit of time?

    python benchmarks/reproduce.py omniglot DATA_DIR --minutes 10
    python benchmarks/reproduce.py omniglot DATA_DIR 'maml:*' prototypical:5w1s --minutes 60
    python benchmarks/reproduce.py cifar_fs DATA_DIR r2d2:5w1s
    python benchmarks/reproduce.py fc100 DATA_DIR 'pretrained-*'

`--try` has each row train for ten seconds and be scored on twenty episodes, and keeps nothing.

Omniglot
--------

For a GPU, or for an hour of CPU and one row. A row is a method, a number of ways and one of shots:
`maml`, `fomaml`, `maml++`, `reptile`, `reptile-transductive` or `prototypical`, 5 or 20 ways and 1
or 5 shots. It trains with its published settings, which `--show` prints, until their number of
steps is done or its `--minutes` are over, tracing and compilation among them, and is then scored on
`--episodes` episodes of test characters. Each row is written to `--output`, a line of JSON, as soon
as it is known, and those that are written there already are left out: a run that is cut off goes on
with the next row by the same command. To do a row again, delete its line. At the end there is a
table of all rows in the output, beside the paper's.

Schedules (halving, cosine, Reptile's annealing) are those of the whole training: where time is over
before, the rate has not come down. What is known to differ from the papers:

- All: the split at random is this package's own, 1,100 characters for training, where Reptile has
  1,200 and MAML++ 1,150. The last weights are scored, not the best on validation.
- MAML, FOMAML: as in the authors' code, the network has the mean over the image before its last
  layer, and batch normalisation without a scale, whose offset the inner loop leaves alone. The
  support loss is a sum over the ways there, so that its inner rates, 0.4 (5 ways) and 0.1 (20), are
  2.0 on the mean.
- MAML++: one model, where the paper's score is of the best five together.
- Prototypical: 20,000 episodes. In the paper training ends when validation does not improve any
  more, and it does not say when that was.

`maml-conv4` and `fomaml-conv4`, which are done when they are asked for, have the package's `conv4`,
strided, and an inner rate of 0.4 on the mean.

CIFAR-FS and FC100
------------------

For two cores: a row, of 5 ways and 1 or 5 shots, trains for 50 minutes and is scored on 2,000
episodes of 15 queries a class, which is less than an hour. Its learning rate falls to 0 along a
cosine of the time, whatever the machine. A row that is cut off goes on from its last state in
`--states` with the time that it has left; the trained learner is kept there too, a file `.keras`.

- `prototypical`, `maml`: as published, but for the steps that there is time for. Images are flipped
  and cropped. MAML's inner rate, 0.01, and 5 steps (10 in the test) are those for miniImageNet.
- `r2d2` has the published widths, 96, 192, 384 and 512, in `conv4`, and `r2d2-64` 64 filters; the
  paper's network has LeakyReLU and dropout besides and hands on its last two blocks.
- `pretrained-centroid`, `-ridge`, `-svm`, `-logistic`: heads on one `conv4` that was trained as a
  classifier of all training classes. The first of these rows trains it, for three fifths of
  `--minutes`; the others find it in `--states`.
- `pretrained-prototypical`, `-r2d2`, `-maml`: the same network, trained over episodes in the two
  fifths that are left.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import functools
import json
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import lines

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

STEPS_OF_EPOCH = 500
SETTINGS = ((5, 1), (5, 5), (20, 1), (20, 5))


@dataclasses.dataclass(frozen=True)
class Published:
    """What a row is trained and scored with.

    Attributes:
        learner: A class of tfmeta.
        arguments: Of the learner, besides the network.
        network: `"conv4, pool"`, `"conv4, stride"`, or `"finn"` for that of MAML's authors.
        ways: Classes of a task in the test; in training too unless `train_ways` is given.
        shots: Support examples of a class in the test; in training too unless `train_shots` is.
        queries: Query examples of a class in training.
        test_queries: Those in the test.
        tasks: Tasks of a step.
        steps: Steps of the whole training.
        learning_rate: Of the outer Adam; `None` where the learner's own arguments say it.
        halving: After how many steps it is halved, if it is.
        inner_adam: Rate of Adam with β1 = 0 as the inner optimizer, if that is one.
        preset: Of `tfmeta.data.load`: which characters are for training.
        turns: How characters are turned in training: by `"episode"` or as `"classes"`.
        test_turns: The same in the test, where `None` leaves them as drawn.
        test_arguments: Of the learner, where they are others in the test.
    """

    learner: str
    arguments: dict[str, Any]
    network: str
    ways: int
    shots: int
    queries: int
    test_queries: int
    tasks: int
    steps: int
    learning_rate: float | None = 1e-3
    halving: int | None = None
    inner_adam: float | None = None
    train_ways: int | None = None
    train_shots: int | None = None
    preset: str = "maml"
    turns: str = "episode"
    test_turns: str | None = "episode"
    test_arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


def maml(ways: int, shots: int, learner: str = "MAML", finn: bool = True) -> Published:
    few = ways == 5
    steps = {"inner_steps": 1 if few else 5, "evaluation_steps": 3 if few else 5}
    arguments = {"inner_learning_rate": 2.0 if finn else 0.4, **steps}
    if finn:
        arguments["adapt_layers"] = [*(f"conv_{block}" for block in range(4)), "logits"]
    return Published(
        learner,
        arguments,
        "finn" if finn else "conv4, stride",
        ways,
        shots,
        queries=shots,
        test_queries=shots,
        tasks=32 if few else 16,
        steps=60_000,
    )


def maml_plus_plus(ways: int, shots: int) -> Published:
    return Published(
        "MAMLPlusPlus",
        {
            "inner_learning_rate": 0.1,
            "inner_steps": 5,
            "multi_step_epochs": 10,
            "cosine_epochs": 100,
            "final_learning_rate": 1e-5,
        },
        "conv4, pool",
        ways,
        shots,
        queries=1,
        test_queries=1,
        tasks=8,
        steps=100 * 500,
        test_turns=None,
    )


# (ways, shots): shots in training, examples and number of inner steps, tasks, steps, inner rate,
# first outer rate, examples and number of steps in evaluation.
REPTILE = {
    (5, 1): (12, 5, 12, 3, 200_000, 4.4e-4, 1.0, 5, 86),
    (5, 5): (10, 10, 5, 5, 100_000, 1.5e-3, 0.7, 6, 100),
    (20, 1): (9, 15, 12, 3, 200_000, 4.6e-4, 1.0, 10, 97),
    (20, 5): (12, 20, 12, 3, 200_000, 4.6e-4, 1.0, 10, 97),
}
REPTILE_TRANSDUCTIVE = {**REPTILE, (5, 1): (15, 25, 3, 10, 100_000, 1e-3, 1.0, 25, 5)}


def reptile(ways: int, shots: int, transductive: bool = False) -> Published:
    settings = (REPTILE_TRANSDUCTIVE if transductive else REPTILE)[ways, shots]
    train_shots, batch, inner, tasks, steps, inner_rate, rate, test_batch, test_steps = settings
    return Published(
        "Reptile",
        {
            "inner_steps": inner,
            "inner_batch_size": batch,
            "evaluation_steps": test_steps,
            "outer_learning_rate": rate,
            "annealing_steps": steps,
            "batch_norm": "transductive" if transductive else "with_support",
        },
        "conv4, stride",
        ways,
        shots,
        queries=1,
        test_queries=1,
        tasks=tasks,
        steps=steps,
        learning_rate=None,
        inner_adam=inner_rate,
        train_shots=train_shots,
        turns="classes",
        test_turns=None,
        test_arguments={"inner_batch_size": test_batch},
    )


def prototypical(ways: int, shots: int) -> Published:
    return Published(
        "PrototypicalNetwork",
        {},
        "conv4, pool",
        ways,
        shots,
        queries=5,
        test_queries=15,
        tasks=1,
        steps=20_000,
        halving=2000,
        train_ways=60,
        preset="vinyals_final",
        turns="classes",
        test_turns="classes",
    )


# name: (settings, published scores in the order of SETTINGS)
METHODS: dict[str, tuple[Callable[[int, int], Published], tuple[str, str, str, str]]] = {
    "maml": (maml, ("98.7 ± 0.4", "99.9 ± 0.1", "95.8 ± 0.3", "98.9 ± 0.2")),
    "fomaml": (
        functools.partial(maml, learner="FOMAML"),
        ("98.3 ± 0.5", "99.2 ± 0.2", "89.4 ± 0.5", "97.9 ± 0.1"),
    ),
    "maml++": (maml_plus_plus, ("99.47", "99.85 to 99.93", "97.65", "99.33")),
    "reptile": (reptile, ("95.39", "98.90", "88.14", "96.65")),
    "reptile-transductive": (
        functools.partial(reptile, transductive=True),
        ("97.68", "99.48", "89.43", "97.12"),
    ),
    "prototypical": (prototypical, ("98.8", "99.7", "96.0", "98.9")),
}
VARIANTS: dict[str, tuple[Callable[[int, int], Published], tuple[str, str, str, str]]] = {
    "maml-conv4": (functools.partial(maml, finn=False), METHODS["maml"][1]),
    "fomaml-conv4": (
        functools.partial(maml, learner="FOMAML", finn=False),
        METHODS["fomaml"][1],
    ),
}


def names_of(methods: dict[str, Any]) -> list[str]:
    return [f"{method}:{ways}w{shots}s" for method in methods for ways, shots in SETTINGS]


def published(name: str) -> tuple[Published, str]:
    """Return the settings and the paper's score of a row."""
    method, _, setting = name.partition(":")
    number = [f"{ways}w{shots}s" for ways, shots in SETTINGS].index(setting)
    settings, scores = {**METHODS, **VARIANTS}[method]
    return settings(*SETTINGS[number]), scores[number]


def chosen(asked: list[str], known: list[str] | None = None) -> list[str]:
    """Return the rows that are asked for, by name or by pattern, each once.

    Args:
        asked: What was asked for; nothing stands for all that are published.
        known: The names there are; those of Omniglot by default.

    Raises:
        ValueError: If there is none of that name.
    """
    if not asked:
        return known or names_of(METHODS)
    every = known or names_of({**METHODS, **VARIANTS})
    names: list[str] = []
    for pattern in asked:
        matching = fnmatch.filter(every, pattern)
        if not matching:
            raise ValueError(f"{pattern!r} is none of {', '.join(every)}")
        names += matching
    return list(dict.fromkeys(names))


def missing(names: list[str], rows: list[dict[str, Any]]) -> list[str]:
    """Return those of the names that have no row yet."""
    there = {row["row"] for row in rows}
    return [name for name in names if name not in there]


def network(kind: str, shape: tuple[int, ...], outputs: int | None) -> Any:
    import keras
    from keras import layers

    import tfmeta

    if kind != "finn":
        return tfmeta.models.conv4(shape, outputs, downsample=kind.removeprefix("conv4, "))
    x = inputs = keras.Input(shape)
    for block in range(4):
        x = layers.Conv2D(64, 3, 2, padding="same", name=f"conv_{block}")(x)
        x = layers.BatchNormalization(scale=False)(x)
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    first = keras.initializers.RandomNormal(stddev=1.0)
    return keras.Model(inputs, layers.Dense(outputs, kernel_initializer=first, name="logits")(x))


def compiled(settings: Published, shape: tuple[int, ...]) -> Any:
    """Return the learner, ready for `fit`."""
    import keras

    import tfmeta

    arguments = dict(settings.arguments)
    if settings.inner_adam is not None:
        adam = tfmeta.inner_optimizers.Adam(settings.inner_adam, beta_1=0.0)
        arguments["inner_optimizer"] = adam
    outputs = None if settings.learner == "PrototypicalNetwork" else settings.ways
    learner = getattr(tfmeta, settings.learner)(
        network(settings.network, shape, outputs), **arguments
    )
    rate: Any = settings.learning_rate
    if settings.halving:
        schedules = keras.optimizers.schedules
        rate = schedules.ExponentialDecay(rate, settings.halving, 0.5, staircase=True)
    learner.compile(
        keras.optimizers.SGD(1.0) if rate is None else keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return learner


@functools.cache
def characters(data_dir: str, preset: str) -> Any:
    """Return the characters for training and for the test, as drawn."""
    import tfmeta

    train, _, test = tfmeta.data.load("omniglot", data_dir, preset=preset, rotations=None)
    return train, test


def sampler_of(classes: Any, turns: str | None, ways: int, shots: int, queries: int) -> Any:
    import tfmeta

    classes = classes.with_rotations() if turns == "classes" else classes
    turned = turns == "episode"
    return tfmeta.data.EpisodeSampler(classes, ways, shots, queries, random_rotation=turned)


def fit(learner: Any, episodes: Any, steps: int, seconds: float) -> dict[str, float]:
    """Train for that many steps, or for that time; return what the last epoch said."""
    import keras

    class Limit(keras.callbacks.Callback):
        end = time.perf_counter() + seconds

        # Not behind a step, where Keras would wait for its results.
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if time.perf_counter() > self.end:
                self.model.stop_training = True

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if not math.isfinite(logs["loss"]):
                self.model.stop_training = True

    of_epoch = min(STEPS_OF_EPOCH, steps)
    history = learner.fit(
        episodes,
        steps_per_epoch=of_epoch,
        epochs=steps // of_epoch,
        callbacks=[Limit()],
        verbose=0,
    ).history
    return {name: values[-1] for name, values in history.items()}


def row(name: str, data_dir: str, minutes: float, episodes: int) -> dict[str, Any]:
    """Train and score one row."""
    import keras
    from scored import scored

    settings, _ = published(name)
    train, test = characters(data_dir, settings.preset)
    keras.utils.set_random_seed(0)
    learner = compiled(settings, train.example_shape)
    sampler = sampler_of(
        train,
        settings.turns,
        settings.train_ways or settings.ways,
        settings.train_shots or settings.shots,
        settings.queries,
    )
    result: dict[str, Any] = {"row": name, "minutes": minutes}
    start = time.perf_counter()
    logs = fit(learner, sampler.dataset(settings.tasks), settings.steps, 60 * minutes)
    result |= {
        "steps": int(learner.optimizer.iterations.numpy()),
        "seconds": time.perf_counter() - start,
        "training": logs,
    }
    examples = (settings.ways, settings.shots, settings.test_queries)
    drawn = sampler_of(test, settings.test_turns, *examples)
    # Nothing was traced for the test before.
    for argument, value in settings.test_arguments.items():
        setattr(learner, argument, value)
    return {
        **result,
        **scored(learner, drawn, episodes, train, test),
        "settings": dataclasses.asdict(settings),
    }


def report(rows: list[dict[str, Any]]) -> None:
    """Print ours beside the paper's."""
    cells = []
    for row in rows:
        settings, score = published(row["row"])
        ours = "diverged" if "failed" in row else f"{row['accuracy']:.2f} ± {row['ci95']:.2f}"
        steps = f"{row['steps']:,} of {settings.steps:,}"
        training = f"{100 * row['training']['accuracy']:.1f}"
        cells.append([row["row"], ours, score, steps, f"{row['seconds']:.0f}", training])
    head = " row | ours | published | steps done | seconds | last epoch of training "
    lines.table(head, cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("benchmark", choices=["omniglot", "cifar_fs", "fc100"])
    add("data_dir", help="the folder of TensorFlow Datasets")
    add("rows", nargs="*", metavar="ROW", help="names or patterns; default: all that are published")
    add("--minutes", type=float, help="for the training of each row; default: 60, of CIFAR 50")
    add("--episodes", type=int, help="default: 1000, of CIFAR 2000")
    add("--show", action="store_true", help="print the rows' settings, and train nothing")
    add("--try", action="store_true", dest="tried", help="ten seconds a row, nothing is kept")
    add("--states", type=pathlib.Path, default=pathlib.Path("runs/reproduce"), help="of CIFAR")
    add("--output", type=pathlib.Path, help="default: benchmarks/results/reproduce_BENCHMARK.jsonl")
    arguments = parser.parse_args()
    benchmark = arguments.benchmark
    of, known, print_table = published, None, report
    minutes, episodes = 60.0, 1000
    if benchmark != "omniglot":
        import cifar_rows

        of = functools.partial(cifar_rows.published, benchmark)
        known = cifar_rows.names()
        print_table = functools.partial(cifar_rows.report, benchmark)
        minutes, episodes = cifar_rows.MINUTES, cifar_rows.EPISODES
    minutes = minutes if arguments.minutes is None else arguments.minutes
    episodes = episodes if arguments.episodes is None else arguments.episodes
    if not minutes > 0 or episodes < 2:
        parser.error("--minutes must be above 0, and --episodes at least 2.")
    try:
        names = chosen(arguments.rows, known)
    except ValueError as error:
        parser.error(str(error))

    def done(name: str, minutes: float, episodes: int, states: pathlib.Path) -> dict[str, Any]:
        if benchmark == "omniglot":
            return row(name, arguments.data_dir, minutes, episodes)
        return cifar_rows.row(benchmark, name, arguments.data_dir, minutes, episodes, states)

    if arguments.show:
        for name in names:
            settings, score = of(name)
            print(name, score, json.dumps(dataclasses.asdict(settings)))
        return
    if arguments.tried:
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                print(json.dumps(done(name, 10 / 60, 20, pathlib.Path(folder))), flush=True)
        return
    kept = pathlib.Path(__file__).parent / "results" / f"reproduce_{benchmark}.jsonl"
    file = arguments.output or kept
    left = missing(names, lines.read(file))
    if len(left) < len(names):
        print(f"{len(names) - len(left)} of {len(names)} rows are in {file} already.")
    for name in left:
        print(f"{name} ...", flush=True)
        lines.add(file, done(name, minutes, episodes, arguments.states))
    every = known or names_of({**METHODS, **VARIANTS})
    print_table([row for row in lines.read(file) if row["row"] in every])


if __name__ == "__main__":
    main()
