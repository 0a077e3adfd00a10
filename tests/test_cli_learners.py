"""Every learner of the package, with its arguments, from the command: trained, scored, adapted."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import tfmeta
from tests.test_cli import TINY, contents, refused, write_images
from tests.test_cli import tfmeta as command
from tfmeta import algorithms, run_data, training
from tfmeta.algorithms.gradient_based import GradientBased
from tfmeta.argument_text import as_text, made, parsed
from tfmeta.cli.learner_options import learner_values
from tfmeta.digests import sha256
from tfmeta.inner_optimizers import RULES, Adam, UpdateRule
from tfmeta.learner_arguments import arguments_of, constructor, learner_class, make, read
from tfmeta.learner_table import LEARNERS
from tfmeta.runs import Run, Settings
from tfmeta.setting_values import EXPECTED, wrong_with

# What makes a learner small, and some of its own arguments besides.
SMALL = {
    "implicit-maml": {"inner_steps": 2, "cg_steps": 1},
    "reptile": {"inner_optimizer": "adam:learning_rate=0.01,beta_1=0", "inner_batch_size": 2},
    "bayesian-maml": {"particles": 2, "repulsion": 0.5},
    "amortized-bayesian-maml": {"samples": 2, "prior": "1,0.1"},
    "fine-tune": {"steps": 2, "optimizer": "sgd:learning_rate=0.1"},
    "maml": {"learned_rates": "tensor", "joint_weight": 0.5},
    "maml++": {"tolerance": 0.0},
    "baseline++": {"steps": 2},
    "tim": {"steps": 2},
    "k-nearest-neighbors": {"k": 2},
    "r2d2": {"ridge": 0.5, "learn_ridge": "false"},
    "soft-k-means": {"transductive": "true"},
    "matching-network": {"full_context": "true", "processing_steps": 2},
    "label-propagation": {"neighbors": 2, "alpha": 0.5},
}
# Of a run of two-way tasks, as an older version wrote them.
SETTINGS = """{"data": "/photos", "data_options": {"size": 12}, "algorithm": "prototypical",
"ways": 2, "shots": 1, "queries": 2, "meta_batch_size": 2, "steps": 2, "epochs": 1,
"learning_rate": 0.001, "learning_rate_halving": null, "inner_learning_rate": 0.4, "inner_steps": 1,
"evaluation_steps": null, "batch_norm": "transductive", "downsample": "stride", "filters": 4,
"distance": "squared_euclidean", "validation_episodes": 2, "seed": 0}"""
# What learns nothing of episodes.
NOTHING = ("k-nearest-neighbors", "tim", "fine-tune")
QUICK = ("k-nearest-neighbors", "r2d2")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "photos", 10)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "few", 2, images=2)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of colour images of 12x12, as somebody might have trained it."""
    path = tmp_path_factory.mktemp("encoder") / "encoder.keras"
    layers = [
        keras.layers.Conv2D(4, 3, 4, name="dense"),  # a name that Keras would give another layer
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.GlobalAveragePooling2D(name="mean"),
    ]
    keras.Sequential([keras.Input((12, 12, 3)), *layers]).save(path)
    return path


def model_for(algorithm: str) -> keras.Model:
    ways = [keras.layers.Dense(2)] if LEARNERS[algorithm].fixed_ways else []
    context = [tfmeta.layers.Context(2)] if algorithm == "cavia" else []
    body = [keras.layers.Dense(3), *context]
    return keras.Sequential([keras.Input((4,)), *body, *ways])


# --- One table ----------------------------------------------------------------------------------


def test_the_table_has_every_learner_of_the_package() -> None:
    assert sorted(named.python for named in LEARNERS.values()) == sorted(algorithms.__all__)


@pytest.mark.parametrize("algorithm", LEARNERS)
def test_the_table_is_what_constructors_say(algorithm: str) -> None:
    """Each argument is one that Python takes, with that default; and no other is left out."""
    made_by, known = constructor(algorithm), arguments_of(algorithm)
    named = LEARNERS[algorithm]
    first = next(iter(inspect.signature(made_by).parameters))
    assert named.fixed_ways == (first == "model")
    assert named.inner_loop == issubclass(learner_class(made_by), GradientBased)
    defaults = {name: argument.default for name, argument in known.items()}
    learner = made_by(model_for(algorithm), **defaults)
    # Of None a rule may have been made; and FineTune's `steps` are a learner's `inner_steps`.
    kept = {k: v for k, v in defaults.items() if v is not None and hasattr(learner, k)}
    kept = {k: v for k, v in kept.items() if not inspect.ismethod(getattr(learner, k))}
    assert {name: getattr(learner, name) for name in kept} == kept
    assert kept
    assert all(argument.words for argument in known.values())
    for name in named.without:
        assert name not in known
        with pytest.raises(TypeError, match=name):
            made_by(model_for(algorithm), **{name: "0"})


def test_every_default_can_be_said() -> None:
    for algorithm in LEARNERS:
        for name, argument in arguments_of(algorithm).items():
            found = parsed(name, as_text(argument.default), argument.kind)
            expected = argument.default
            assert found == (list(expected) if isinstance(expected, tuple) else expected)
            assert wrong_with({"arguments": {name: found}}, EXPECTED) is None


@pytest.mark.parametrize(
    ("algorithm", "given", "message"),
    [
        ("r2d2", {"rigde": "1"}, "r2d2 has no argument 'rigde'. Did you mean 'ridge'? It has"),
        ("r2d2", {"ridge": "much"}, "`ridge` must be a number. Received: ridge='much'."),
        ("r2d2", {"ridge": "nan"}, "`ridge` must be a number. Received: ridge='nan'."),
        ("r2d2", {"learn_ridge": "1"}, "`learn_ridge` must be true or false. Received"),
        ("soft-k-means", {"steps": "1.5"}, "`steps` must be a whole number. Received"),
        ("maml", {"learned_rates": "steps"}, "tensor_step, weight. Received: learned_rates='steps"),
        ("maml", {"learned_rates": "steps"}, "Did you mean 'step'?"),
        ("maml", {"inner_optimizer": "adm"}, "Did you mean 'adam'?"),
        ("maml", {"inner_optimizer": "adam:beta=0"}, "must be adam with learning_rate, beta_1,"),
        ("maml", {"inner_optimizer": "adam:beta_1"}, "must have a number for beta_1, as in adam:"),
        ("amortized-bayesian-maml", {"prior": "1,2,3"}, "`prior` must be 2 numbers with commas"),
        ("anil", {"adapt_layers": "dense"}, "anil has no argument 'adapt_layers'."),
        ("relation-network", {"relation": "x"}, "relation-network has no argument 'relation'."),
    ],
)
def test_what_is_no_value_is_said(algorithm: str, given: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read(algorithm, given)


def test_texts_become_what_constructors_take() -> None:
    values = read("maml", {"inner_optimizer": "adam:learning_rate=0.5", "adapt_layers": "a,b"})
    assert values == {
        "inner_optimizer": {"rule": "adam", "learning_rate": 0.5},
        "adapt_layers": ["a", "b"],
    }
    learner: Any = make("maml", model_for("maml"), {**values, "adapt_layers": None})
    assert isinstance(learner.rule, Adam)
    assert learner.rule.get_config()["learning_rate"] == 0.5
    assert read("maml", {"adapt_layers": "none"}) == {"adapt_layers": None}
    for rule in RULES:
        assert isinstance(made(parsed("x", rule, UpdateRule)), RULES[rule])


def test_the_document_has_every_learner() -> None:
    text = (Path(__file__).parents[1] / "docs" / "command.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    found: dict[str, str] = {}
    for row in rows:
        names, classes = (re.findall(r"`([^`]+)`", cell) for cell in row.split("|")[1:3])
        found |= dict(zip(names, classes, strict=True))
    assert found == {name: named.python for name, named in LEARNERS.items()}


# --- Options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inner-steps", 3], "--inner-steps is not for prototypical, which has no such argument"),
        (["-a", "r2d2", "--distance", "cosine"], "--distance is not for r2d2"),
        (["-a", "proto-maml", "--distance", "cosine"], "--distance is not for proto-maml"),
        (["-a", "fine-tune", "--inner-learning-rate", 1], "--inner-learning-rate is not for fine-"),
        (["-a", "reptile", "--learning-rate", 0.1], "--learning-rate is not for reptile"),
        (["-a", "r2d2", "--set", "ridge"], "'ridge' is not of the form NAME=VALUE, as in"),
        (["-a", "r2d2", "--set", "ridge=1", "--set", "ridge=2"], "--set ridge is given twice."),
        (["-a", "r2d2", "--set", "ways=5"], "ways is no argument of r2d2, but an option: --ways"),
        (
            ["-a", "maml", "--set", "inner-steps=1", "--inner-steps", 2],
            "--inner-steps and --set in",
        ),
        (["-a", "maml", "--set", "inner_learning_rate=0"], "`inner_learning_rate` must be a posit"),
        (
            ["-a", "maml", "--inner-learning-rate", 1, "--set", "inner_optimizer=sgd"],
            "has a rate of its own: choose one.",
        ),
        (["-a", "simple-shoot"], "Did you mean 'simple-shot'?"),
        (["-a", "tim"], "tim has nothing to train over episodes, so that its network must have"),
        (["-a", "r2d2", "--set", "ridge=-1"], "`ridge` must be positive"),
        (["--freeze"], "--freeze is for a network that was trained before"),
        (["--network", "encoder.keras"], "There is no file 'encoder.keras'."),
    ],
)
def test_options_that_a_learner_does_not_take(
    arguments: list[object], message: str, photos: Path, tmp_path: Path
) -> None:
    assert message in refused("train", photos, *TINY, "-o", tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


def test_what_is_said_is_what_the_learner_gets() -> None:
    """And where nothing is said, what its constructor says; but for what the command looks for."""
    nothing = dict.fromkeys(
        ("inner_learning_rate", "inner_steps", "evaluation_steps", "batch_norm", "distance")
    )
    adam = {"learning_rate": 1e-3, "learning_rate_halving": None}
    for algorithm in LEARNERS:
        found = learner_values(algorithm, {**nothing, **adam}, [])
        known = arguments_of(algorithm)
        assert found["arguments"] == {}
        for name, value in found.items():
            if name in known and name != "inner_learning_rate":
                same = 1 if (algorithm, name) == ("maml++", "inner_steps") else known[name].default
                assert value == same, (algorithm, name)
    said = {**nothing, **adam, "inner_steps": 1, "batch_norm": "support"}
    found = learner_values("cavia", said, [("evaluation_steps", "4"), ("joint_weight", "0.5")])
    assert (found["inner_steps"], found["batch_norm"], found["evaluation_steps"]) == (
        1,
        "support",
        4,
    )
    assert found["arguments"] == {"joint_weight": 0.5}
    assert learner_values("prototypical", {**nothing, **adam, "inner_steps": 1}, [])


def test_the_learners_are_listed() -> None:
    output = command("learners").output
    for name in LEARNERS:
        assert f"  {name} " in output
    text = " ".join(command("learners", "matching-network").output.split())
    assert "matching-network: tfmeta.MatchingNetwork" in text
    assert "processing_steps=5 How many steps lead to f [a whole number]" in text
    assert "inner_steps=1 K, in training [a whole number; or --inner-steps]" in " ".join(
        command("learners", "maml").output.split()
    )
    assert "Did you mean 'maml'?" in refused("learners", "mamml")


# --- All of them, trained -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "algorithm",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LEARNERS],
)
def test_every_learner_is_trained_and_used(
    algorithm: str, photos: Path, few: Path, encoder: Path, tmp_path: Path
) -> None:
    """For two epochs, then read again, scored, adapted and asked; and for one more epoch."""
    path = tmp_path / "run"
    small = [f"{name}={value}" for name, value in SMALL.get(algorithm, {}).items()]
    own = [word for text in small for word in ("--set", text)]
    rate = "inner_learning_rate" in arguments_of(algorithm)
    if rate and "inner_optimizer" not in SMALL.get(algorithm, {}):
        own += ["--inner-learning-rate", "0.1"]
    shared = ("--network", encoder, *TINY[6:])
    arguments = ("train", photos, "-a", algorithm, *shared, *own, "-o", path)
    said = command(*arguments, "--epochs", 2).output
    run = Run(path)
    settings, learner, history = run.settings(), run.learner(), run.history()
    nothing = algorithm in NOTHING
    assert [row["epoch"] for row in history] == (["1"] if nothing else ["1", "2"])
    assert ("has nothing to train over episodes" in said) == nothing
    assert isinstance(learner, learner_class(constructor(algorithm)))
    for name, value in settings.arguments.items():
        if algorithm != "fine-tune":  # whose arguments are called otherwise
            assert plain(getattr(learner, name)) == plain(made(value))
    scored = command("evaluate", path, "--episodes", 2, "--no-references").output
    assert "2-way 1-shot, seed 0: " in scored
    command("adapt", path, "--support", few, "-o", tmp_path / "adapted")
    answers = json.loads(command("predict", tmp_path / "adapted", few, "--format", "json").stdout)
    assert [set(answer) for answer in answers] == [{"file", "class", "probability"}] * 4
    # It goes on where there is something to go on with; and what is finished is finished.
    again = command(*arguments, "--epochs", 2 if nothing else 3, "--resume").output
    assert "Saved in" in again
    assert len(Run(path).history()) == (1 if nothing else 3)


def plain(value: Any) -> Any:
    """Return an argument as numbers and words, whether it is a rule or a list."""
    if hasattr(value, "get_config"):
        return value.get_config()
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [name for name in LEARNERS if LEARNERS[name].inner_loop])
def test_a_rate_is_found_for_every_inner_loop(algorithm: str, photos: Path, encoder: Path) -> None:
    values = json.loads(SETTINGS) | {"data": str(photos), "network": str(encoder)}
    settings = Settings(**{**values, "algorithm": algorithm})
    if "inner_learning_rate" in arguments_of(algorithm):
        found = training.with_suggested_rate(settings, run_data.load_data(settings), verbose=False)
        assert found.inner_learning_rate is not None
        assert 0 < found.inner_learning_rate < 100


@pytest.mark.parametrize(
    "algorithm",
    [
        pytest.param(name, marks=[] if name in ("fomaml", "boil") else pytest.mark.slow)
        for name in LEARNERS
        if LEARNERS[name].fixed_ways
    ],
)
def test_behind_a_trained_network_all_classes_begin_as_likely(
    algorithm: str, photos: Path, encoder: Path
) -> None:
    """But where a head of zeros would keep the inner loop from moving anything."""
    before = Settings(
        **{
            **json.loads(SETTINGS),
            **{"data": str(photos), "network": str(encoder), "algorithm": algorithm},
        }
    )
    after = dataclasses.replace(before, network_sha256=sha256(encoder))
    parts = run_data.load_data(after)
    body = {"adapt_layers": ["dense", "norm"]}  # the encoder's convolution is called so
    settings = [before, after]
    if "adapt_layers" in arguments_of(algorithm):
        settings.append(dataclasses.replace(after, arguments=body))
    learners = [training.new_learner(one, parts[0].example_shape) for one in settings]
    inner = algorithm not in ("boil", "cavia")
    zero = [not np.any(learner.model.layers[-1].kernel) for learner in learners]
    assert zero == [False, inner, False][: len(zero)]
    inputs = next(iter(training.training_sampler(before, parts[0]).dataset(1)))[0]
    for learner in learners:
        assert np.ptp(learner(inputs).numpy(), axis=-1).max() > 1e-4


@pytest.mark.slow
def test_the_network_is_trained_before(photos: Path, few: Path, tmp_path: Path) -> None:
    """As an ordinary classifier; then there is nothing more to do, also after an interruption."""
    path = tmp_path / "run"
    arguments = ("train", photos, *TINY, "-a", "fine-tune", "--set", "steps=2", "-o", path)
    arguments += ("--set", "adapt_layers=conv2d,dense")
    keras.utils.clear_session()  # as in a process of its own, where layers are called so
    said = command(*arguments, "--pretrain-epochs", 1).output
    assert "Pretraining conv4" in said
    assert "fine-tune has nothing to train over episodes" in said
    before = contents(path)
    keras.utils.clear_session()
    command(*arguments, "--pretrain-epochs", 1, "--resume")
    assert contents(path).keys() == before.keys()
    assert contents(path)["history.csv"] == before["history.csv"]


def test_a_run_of_before_is_read(photos: Path, tmp_path: Path) -> None:
    """Of when there were four learners: resumed with the same command, whatever came since."""
    path = tmp_path / "run"
    arguments = ("train", photos, *TINY, "-o", path)
    command(*arguments, "--epochs", 1)
    values = json.loads((path / "settings.json").read_text())
    for name in ("arguments", "network_sha256", "freeze", "batch_norm_momentum", "min_per_class"):
        del values[name]
    (path / "settings.json").write_text(json.dumps(values))
    command(*arguments, "--epochs", 2, "--resume")
    command("evaluate", path, "--episodes", 2, "--no-references")
    assert len(Run(path).history()) == 2
    said = refused(*arguments, "--epochs", 3, "--resume", "--set", "temperature=2")
    assert "`arguments` must be {} as when" in said


# --- Networks -----------------------------------------------------------------------------------


def test_an_encoder_of_elsewhere(photos: Path, encoder: Path, few: Path, tmp_path: Path) -> None:
    """SimpleShot leaves it as it is, and learns where embeddings lie; images are of its size."""
    path = tmp_path / "run"
    shared = ("--queries", 2, "--steps", 2, "--epochs", 1, "--validation-episodes", 2, "-o", path)
    arguments = ("train", photos, "-a", "simple-shot", "--network", encoder, *shared)
    said = command(*arguments).output
    assert "The network stays as it was trained; with --no-freeze" in said
    settings, learner = Run(path).settings(), Run(path).learner()
    assert settings.data_options["size"] == 12
    assert settings.filters is None
    kept = keras.models.load_model(encoder)
    for a, b in zip(learner.model.weights, kept.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(learner.get_weights()[-1]).max() > 0
    said = refused(*arguments, "--resume", "--no-freeze")
    assert "`freeze` must be True as when" in said
    kept.layers[0].kernel.assign_add(keras.ops.ones_like(kept.layers[0].kernel))
    copy = tmp_path / "other.keras"
    copy.write_bytes(encoder.read_bytes())
    other = ("train", photos, "-a", "simple-shot", "--network", copy, *shared)
    assert "`network` must be" in refused(*other, "--resume")
    command("adapt", path, "--support", few, "-o", tmp_path / "adapted")


def test_networks_of_files_are_given_outputs(photos: Path, encoder: Path) -> None:
    values = json.loads(SETTINGS) | {"data": str(photos), "network": str(encoder)}
    settings = Settings(**values, batch_norm_momentum=0.25)
    for algorithm in LEARNERS:
        chosen = dataclasses.replace(settings, algorithm=algorithm, arguments={})
        learner = training.new_learner(chosen, (12, 12, 3))
        outputs = learner.model.output_shape[-1]
        assert outputs == (settings.ways if LEARNERS[algorithm].fixed_ways else 4)
        norms = [x for x in learner.model.layers if hasattr(x, "momentum")]
        assert [norm.momentum for norm in norms] == [0.25]


def saved(file: Path, shape: tuple[Any, ...], *layers: Any) -> Path:
    keras.Sequential([keras.Input(shape), *layers]).save(file)
    return file


def test_encoders_that_do_not_fit(photos: Path, tmp_path: Path) -> None:
    mean = keras.layers.GlobalAveragePooling2D
    file, run = tmp_path / "encoder.keras", tmp_path / "run"

    def said(data: object) -> str:
        return refused("train", data, "--network", file, "--queries", 2, "-o", run)

    file.write_text("no model")
    assert f"'{file}' must be a model that Keras saved" in said(photos)
    saved(file, (None, None, 3), mean())
    assert "must take images [n, height, width, channels] of one size" in said(photos)
    saved(file, (12, 12, 3), keras.layers.Conv2D(2, 3))
    assert "must give one vector [n, d] for each image" in said(photos)
    saved(file, (12, 12, 3), mean())
    assert "must take the data's images, of shape (28, 28, 1)" in said("glyphs")
    assert "--filters is for a network made here" in refused(
        "train", photos, "--network", file, "--filters", 4, "-o", run
    )
    assert "--downsample is for conv4" in refused(
        "train", photos, "--network", file, "--downsample", "stride", "-o", run
    )
    assert "which has none" in refused(
        *("train", photos, "--network", file, "--batch-norm-momentum", 0.5, "--queries", 2),
        *("-o", run),
    )
    learner = tfmeta.MAML(
        keras.Sequential([keras.Input((12, 12, 3)), mean(), keras.layers.Dense(2)])
    )
    learner.build({"support_x": (1, 2, 12, 12, 3), "support_y": (1, 2)})
    learner.save(file)
    assert "Received: a MAML, whose model has outputs for classes" in said(photos)
    assert not run.exists()
