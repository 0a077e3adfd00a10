"""A report says what `evaluate` says, shows what is there, and is safe with any name."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import html.parser
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import keras
import numpy as np
import pytest
from click.testing import CliRunner, Result
from scipy import stats
from sklearn.metrics import confusion_matrix

import tfmeta
from tests.test_evaluation import sampler_of, vectors
from tfmeta import plots, reporting, run_data, training
from tfmeta.cli import main, repeat
from tfmeta.cli.report import check_same_data, sampler_of_all
from tfmeta.cli.settings import class_lists, settings_from
from tfmeta.cli.train import train
from tfmeta.data import ClassDataset, EpisodeSampler
from tfmeta.reporting import writing
from tfmeta.reporting.classes import ByClass
from tfmeta.reporting.markup import visible
from tfmeta.reporting.sections.examples import described
from tfmeta.runs import Run, Settings

EPISODES = 7
# What HTML, SVG, mathematics in labels and terminals would each take for something else.
NAMES = [
    *(
        "<script>alert(1)</script>",
        'a"onload="x',
        "a & b &amp;",
        "$x_{$",
        "漢字",
        "x\x1b[31m\u202ey",
    ),
    *("</style></svg>", "'quoted'", "<!-- -->"),
]
LEARNERS = ("first", "<b>second</b>")


class Page(html.parser.HTMLParser):
    """A page as a browser sees it: elements, texts and attributes."""

    VOID = ("img", "meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def blocks(names: list[str], seed: int = 0) -> ClassDataset:
    """Noisy images of which a class has a pattern in common."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 90, (len(names), 6, 6, 1))
    images = np.repeat(patterns, 8, 0) + rng.integers(0, 160, (8 * len(names), 6, 6, 1))
    labels = np.repeat(np.arange(len(names)), 8)
    return ClassDataset(images.astype(np.uint8), labels, names, description="<i>blocks</i>")


def network(seed: int) -> tfmeta.PrototypicalNetwork:
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    return tfmeta.PrototypicalNetwork(keras.Sequential(layers))


@dataclasses.dataclass
class Made:
    learners: dict[str, Any]
    sampler: EpisodeSampler
    measured: reporting.Measured
    path: Path
    page: Page


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    learners: dict[str, Any] = {name: network(i) for i, name in enumerate(LEARNERS)}
    sampler = EpisodeSampler(blocks(NAMES), ways=4, shots=2, queries=3, seed=5)
    path = tmp_path_factory.mktemp("report") / "report.html"
    history = {"epoch": [0, 1], "loss": [2.0, 1.0], "val_loss": [2.0, 1.5]}
    settings = {"data": "<u>", "rate": 0.25}
    given: dict[str, Any] = {
        LEARNERS[0]: reporting.Reported(
            learners[LEARNERS[0]], {**settings, "steps": 3}, history, ["train '<b>' & go"]
        ),
        LEARNERS[1]: reporting.Reported(learners[LEARNERS[1]], {**settings, "steps": 4}),
    }
    measured = tfmeta.report(given, sampler, path, EPISODES, verbose=False)
    return Made(learners, sampler, measured, path, Page(path.read_text(encoding="utf-8")))


def test_numbers_are_those_of_evaluate_and_uncertainty(made: Made) -> None:
    text = "".join(made.page.texts)
    for name, learner in made.learners.items():
        expected = tfmeta.evaluate(learner, made.sampler, EPISODES, references=True, verbose=False)
        found = made.measured.evaluations[name]
        assert str(found) == str(expected)
        np.testing.assert_array_equal(found.per_episode, expected.per_episode)
        assert f"{100 * expected.mean:.2f} ± {100 * expected.ci95:.2f} %" in text
        for reference in expected.references.values():
            difference = abs(100 * reference.difference.mean)
            if difference > 0:
                assert f"{difference:.2f} ± {100 * reference.difference.ci95:.2f}" in text
    name = LEARNERS[0]
    believed = tfmeta.uncertainty(made.learners[name], made.sampler, EPISODES, verbose=False)
    assert str(made.measured.uncertainties[name]) == str(believed)
    for of in made.measured.uncertainties.values():
        assert f"{100 * of.expected_calibration_error():.2f} %" in text
        assert f"{of.negative_log_likelihood:.4f}" in text
    one, other = (made.measured.evaluations[name].per_episode for name in LEARNERS)
    expected_p = stats.ttest_rel(one, other).pvalue
    pair = made.measured.comparison.difference(*LEARNERS)
    assert pair.p_value == pytest.approx(expected_p, rel=1e-9)
    assert f"{abs(100 * np.mean(one - other)):.2f} ± {100 * pair.ci95:.2f}" in text
    assert f"p = {expected_p:.3f}" in text
    # What is the same for all learners is there once.
    names = made.measured.comparison.baselines
    assert sum("raw inputs" in name for name in names) == 3
    assert sum("embedding" in name for name in names) == 6


def nearest(learner: Any, inputs: dict[str, Any]) -> Any:
    """Return the label of the nearest mean embedding, by NumPy."""
    w, b = (np.asarray(weight, np.float64) for weight in learner.encoder.weights)
    support, query = (inputs[name][0].reshape(-1, 36) @ w + b for name in ("support_x", "query_x"))
    labels = inputs["support_y"][0]
    means = np.array([support[labels == way].mean(0) for way in range(labels.max() + 1)])
    return ((query[:, None] - means) ** 2).sum(-1).argmin(1)


def test_classes_are_counted_as_scikit_learn_does(made: Made) -> None:
    found = made.measured.classes
    assert isinstance(found, ByClass)
    offsets = made.sampler.source.class_offsets
    owner = np.empty(len(made.sampler.source), int)
    for c in range(len(NAMES)):
        owner[made.sampler.source.class_indices[offsets[c] : offsets[c + 1]]] = c
    for name, learner in made.learners.items():
        true, answers, met = [], [], Counter()
        for e in range(EPISODES):
            inputs, targets = made.sampler.batch(e)
            _, query, _ = made.sampler.draw(e)
            of = owner[query[0, :, 0]]
            true += of[targets[0]].tolist()
            answers += of[nearest(learner, inputs)].tolist()
            met.update((int(c), int(d)) for c in of[targets[0]] for d in of)
        counts = confusion_matrix(true, answers, labels=np.arange(len(NAMES)))
        np.testing.assert_array_equal(found.queries, counts.sum(1))
        np.testing.assert_array_equal(found.right[name], np.diag(counts))
        every = range(len(NAMES))
        expected = [
            [counts[c, d] / met[c, d] if met[c, d] else np.nan for d in every] for c in every
        ]
        np.testing.assert_array_equal(found.rates(name, every), expected)
        wrong = {(c, d): n for (c, d), n in np.ndenumerate(counts) if c != d and n}
        assert {(c, d): (n, m) for c, d, n, m in found.confused(name, 99)} == {
            pair: (n, met[pair]) for pair, n in wrong.items()
        }
        for c, (_, times) in found.most_often(name).items():
            assert times == max(n for (row, _), n in wrong.items() if row == c)
    accuracy = found.mean_accuracy[found.hardest]
    assert accuracy.tolist() == sorted(accuracy.tolist())
    for c, mistakes in found.mistakes.items():
        for mistake in mistakes:
            _, query, _ = made.sampler.draw(mistake.episode)
            assert owner[query.reshape(-1)[mistake.query]] == c
            assert any(answer != c for answer in mistake.answers.values())


def test_a_page_is_by_itself_and_nothing_in_it_runs(made: Made) -> None:
    page = made.page
    assert not page.of("script")
    assert len(page.of("style")) == 1
    for name, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on")], (name, attributes)
        for key in ("src", "href"):
            if key in attributes:
                assert re.match(r"data:image/|#part\d+$", attributes[key] or "")
    assert "url(" not in made.path.read_text(encoding="utf-8")
    policy = next(m["content"] for m in page.of("meta") if "http-equiv" in m)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    anchors = {attributes.get("id") for attributes in page.of("section")}
    assert {f"#{anchor}" for anchor in anchors} == {a["href"] for a in page.of("a")}


def test_names_are_shown_as_they_are(made: Made) -> None:
    text = "".join(made.page.texts)
    for name in [*NAMES, *LEARNERS, "<i>blocks</i>", "<u>", "train '<b>' & go"]:
        assert visible(name) in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert visible("x\x1b[31m\u202ey") == "x\\x1b[31m\\u202ey"
    assert visible("\udcff अ\u200dब\u3000") == "\\udcff अ\u200dब\u3000"


def test_every_picture_can_be_read_and_has_words_in_its_place(made: Made) -> None:
    kinds = Counter()
    for image in made.page.of("img"):
        assert image["alt"]
        head, content = (image["src"] or "").split(",", 1)
        data = base64.b64decode(content)
        kinds[head] += 1
        if "svg" in head:
            tree = ElementTree.fromstring(data)  # fails for what is no XML
            tags = {element.tag.rpartition("}")[2] for element in tree.iter()}
            assert "script" not in tags
            assert b"currentColor" in data
            assert b"#010203" not in data
        else:
            assert data.startswith(b"\x89PNG")
    assert kinds["data:image/svg+xml;base64"] == 1 + 1 + 1 + 2 + 2  # two learners' matrices, ...
    assert kinds["data:image/png;base64"] >= 2 * 4 * 5
    labels = "".join(
        "".join(ElementTree.fromstring(base64.b64decode((i["src"] or "").split(",")[1])).itertext())
        for i in made.page.of("img")
        if "svg" in (i["src"] or "")
    )
    assert "<script>alert(1)</script>" in labels
    assert "$x_{$" in labels


def test_settings_that_differ_are_marked(made: Made) -> None:
    text = made.path.read_text(encoding="utf-8")
    (marked,) = re.findall(r'class="differ">.*?<tbody>(.*?)</tbody>', text)
    assert re.findall(r"<strong>(.*?)</strong>", marked) == ["steps"]
    assert "1 of 3 settings differ" in text
    assert "2 settings that all have in common" in text


def test_it_says_what_it_was_measured_on(made: Made) -> None:
    text = "".join(made.page.texts)
    for value in (tfmeta.__version__, keras.__version__, np.__version__):
        assert value in text
    assert all(seconds > 0 for seconds in made.measured.seconds.values())
    assert all(f"{seconds:.1f}" in text for seconds in made.measured.seconds.values())


def small(path: Path, learner: Any = None, sampler: Any = None, **options: Any) -> Any:
    """Write a report of two episodes."""
    given = {"references": False, "verbose": False, "episodes": 2, **options}
    return tfmeta.report(learner or network(0), sampler or SMALL, path, **given)


SMALL = EpisodeSampler(blocks(["a", "b", "c"]), ways=2, shots=1, queries=1)


def test_only_reports_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("<html>mine</html>")
    with pytest.raises(FileExistsError, match=r"report.html' exists and is no report.*--overwrite"):
        small(path)
    assert path.read_text() == "<html>mine</html>"
    small(path, overwrite=True, title="one")
    assert "<title>one</title>" in path.read_text()
    small(path, title="two")
    assert "<title>two</title>" in path.read_text()

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(writing, "measure", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        small(path)
    assert "<title>two</title>" in path.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(IsADirectoryError, match="a folder"):
        small(tmp_path)
    with pytest.raises(FileNotFoundError, match="without the folder"):
        small(tmp_path / "nowhere" / "report.html")


@pytest.mark.parametrize(
    ("learners", "options", "error", "match"),
    [
        ({}, {}, ValueError, "at least one learner"),
        ([1], {}, TypeError, "a dict of names.*list"),
        ({"a": 3}, {}, TypeError, "'a': 3"),
        ({1: 3}, {}, TypeError, "names for keys. Received: 1"),
        ({"a": reporting.Reported(3)}, {}, TypeError, "'a': 3"),  # type: ignore[arg-type]
        ("network", {"episodes": 0}, ValueError, "`episodes` must be at least 1"),
    ],
)
def test_what_is_refused(
    learners: Any, options: Any, error: Any, match: str, tmp_path: Path
) -> None:
    if isinstance(learners, str):
        learners = {learners: network(0)}
    given = {"episodes": 2, "verbose": False, **options}
    with pytest.raises(error, match=match):
        tfmeta.report(learners, SMALL, tmp_path / "x.html", **given)
    assert not list(tmp_path.iterdir())


def test_a_learner_may_be_called_as_a_reference_is() -> None:
    scores = [np.array([0.5, 0.25]), np.array([0.75, 0.5])]
    difference = tfmeta.Difference(scores[1] - scores[0])
    others = {"chance": tfmeta.Reference(scores[0], difference)}
    evaluations = {
        "chance": tfmeta.Evaluation(scores[1], "accuracy", references=others),
        "b": tfmeta.Evaluation(scores[1], "accuracy", references=others),
    }
    measured = reporting.Measured(evaluations, {}, "", [], {}, 2)
    assert measured.comparison.baselines == ("chance (reference)",)
    np.testing.assert_array_equal(measured.comparison.per_episode["chance"], scores[1])
    np.testing.assert_array_equal(measured.comparison.per_episode["chance (reference)"], scores[0])


def text_of(path: Path) -> str:
    return " ".join(" ".join(Page(path.read_text(encoding="utf-8")).texts).split())


def of_vectors() -> tfmeta.PrototypicalNetwork:
    return tfmeta.PrototypicalNetwork(tfmeta.models.mlp((4,), 2))


@pytest.mark.parametrize("ways", [3, (2, 5)])
def test_vectors_and_episodes_that_do_not_say_their_classes(ways: Any, tmp_path: Path) -> None:
    sampler, path = vectors(ways=ways), tmp_path / "x.html"
    found = small(path, of_vectors(), sampler, episodes=5)
    assert found.classes == "the sampler does not say which classes its episodes have"
    assert sampler.steps == [(e, 1) for e in range(5)]
    text = text_of(path)
    assert "Not known, for the sampler does not say which classes" in text
    x = sampler.batch(0)[0]["support_x"][0, 0]
    assert described(x) in text
    small(path, of_vectors(), sampler.sampler, episodes=5)
    assert "Not known" not in text_of(path)


def test_regression(tmp_path: Path) -> None:
    learner = tfmeta.FOMAML(tfmeta.models.mlp((1,), 1, units=(4,)), 0.01, 1)
    learner.compile("sgd", keras.losses.MeanSquaredError())
    sampler = tfmeta.data.Sinusoids(shots=3, queries=4, seed=0)
    path = tmp_path / "x.html"
    found = small(path, {"it": learner}, sampler, episodes=3, references=True)
    same = tfmeta.evaluate(learner, sampler, 3, references=True, verbose=False)
    assert str(found.evaluations["it"]) == str(same)
    text = text_of(path)
    assert f"{same.mean:.4f} ± {same.ci95:.4f}" in text
    assert "Told only where an example has one class" in text
    inputs, targets = sampler.batch(0)
    assert described(targets[0, 0]) in text
    assert described(learner.predict_on_batch(inputs)[0, 0]) in text


def test_a_single_episode_has_no_interval(tmp_path: Path) -> None:
    small(tmp_path / "x.html", {"a": network(0), "b": network(1)}, episodes=1)
    text = text_of(tmp_path / "x.html")
    assert "of 1 episode: no interval" in text
    assert "one episode proves nothing" in text
    assert not re.search(r"\bnan\b", text)


def test_examples_of_any_kind_are_described() -> None:
    assert described("two\nlines " + "x" * 200) == "two lines " + "x" * 149 + "…"
    assert described(b"caf\xc3\xa9") == "café"
    assert described(np.array([1, 2])) == "1, 2"
    assert described(np.linspace(0, 1, 100)).endswith("… (100 numbers)")
    assert described(np.float32(0.5)) == "0.5"


def test_texts_are_shown(tmp_path: Path) -> None:
    texts = [f"<em>{word} {i}" for word in ("red", "blue", "green") for i in range(4)]
    dataset = ClassDataset(texts, np.repeat(["r", "b", "g"], 4))
    hashed = keras.Sequential(
        [keras.Input((), dtype="string"), keras.layers.Hashing(9), keras.layers.Embedding(9, 2)]
    )
    path = tmp_path / "x.html"
    small(path, tfmeta.PrototypicalNetwork(hashed), EpisodeSampler(dataset, 2, 1, 2))
    assert "<em>red" in text_of(path) or "<em>blue" in text_of(path)


def test_examples_of_many_labels_each(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((5, 1)), keras.layers.Dense(2)])
    learner = tfmeta.Reptile(model, 0.1, 1)
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 1)).astype(np.float32)
    y = (x[..., 0] > 0).astype(np.int32)
    sampler = sampler_of({"support_x": x, "support_y": y, "query_x": x}, y)
    found = small(tmp_path / "x.html", {"it": learner}, sampler)
    assert found.uncertainties == {}
    same = tfmeta.evaluate(learner, sampler, 2, verbose=False)
    np.testing.assert_array_equal(found.evaluations["it"].per_episode, same.per_episode)
    assert "Each example has many answers" in text_of(tmp_path / "x.html")


def test_normalised_images_are_stretched_and_queries_of_void_do_not_count(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(1, 4, 8, 8, 3)).astype(np.float32)
    y = np.array([[0, 0, 1, 1]])
    sampler = sampler_of({"support_x": x, "support_y": y, "query_x": x}, y)
    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten()]
    small(tmp_path / "x.html", tfmeta.PrototypicalNetwork(keras.Sequential(layers)), sampler)
    page = Page((tmp_path / "x.html").read_text(encoding="utf-8"))
    assert sum("png" in (image["src"] or "") for image in page.of("img")) == 2 * 8


# The command.


def write_run(folder: Path, settings: Settings, part: ClassDataset) -> Path:
    """Write a run as training would, of a learner that has learnt nothing."""
    learner = training.new_learner(settings, part.example_shape)
    inputs, _ = training.evaluation_sampler(settings, part).batch(0)
    learner(inputs)
    learner.optimizer.build(learner.trainable_variables)
    run = Run(folder)
    run.start(settings)
    run.write_history([{"epoch": 0, "loss": 1.5, "val_loss": 1.25}])
    training.save_model(run, learner)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs on a folder of images, whose classes have names that need care."""
    from PIL import Image

    base = tmp_path_factory.mktemp("runs")
    dataset = blocks([name.replace("/", "|") for name in NAMES[:4]] + [f"c{i}" for i in range(6)])
    for c, name in enumerate(dataset.class_names):
        (base / "photos" / name).mkdir(parents=True)
        for i in range(8):
            image = dataset.examples[8 * c + i, :, :, 0].astype(np.uint8)
            Image.fromarray(image).resize((16, 16)).save(base / "photos" / name / f"{i}.png")
    small = "--ways 2 --queries 2 --meta-batch-size 2 --steps 2 --epochs 1 --validation-episodes 2"
    network = "--filters 16 --downsample stride --grayscale"
    settings = options_of([str(base / "photos"), *small.split(), *network.split()])
    parts = run_data.load_data(settings)
    settings = run_data.settled(settings, parts)
    other = dataclasses.replace(settings, shots=2, filters=17)
    shuffled = dataclasses.replace(settings, seed=3)
    shuffled = run_data.settled(
        shuffled, run_data.load_data(dataclasses.replace(shuffled, classes=None))
    )
    return {
        "one": write_run(base / "one", settings, parts[2]),
        "two": write_run(base / "two <2>", other, parts[2]),
        "elsewhere": write_run(base / "elsewhere", shuffled, parts[2]),
    }


def command(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_the_epochs_of_a_run_are_drawn_as_they_are_counted(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only epoch is the first one on the screen, in the file and in the picture."""
    figures, draw = [], plots.learning_curves

    def drawn(*args: Any, **kwargs: Any) -> Any:
        figures.append(draw(*args, **kwargs))
        return figures[-1]

    monkeypatch.setattr(plots, "learning_curves", drawn)
    shape = ("--episodes", 2, "--shots", 1, "--no-references")
    command("report", runs["one"], "-o", tmp_path / "report.html", *shape)
    assert [row["epoch"] for row in Run(runs["one"]).history()] == ["1"]
    assert figures
    for figure in figures:
        (axes,) = figure.axes
        assert [line.get_xdata().tolist() for line in axes.lines] == [[1.0], [1.0]]


def test_the_command_says_what_evaluate_says(runs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    shape = ("--episodes", 12, "--shots", 1, "--no-references")
    said = command("report", runs["one"], runs["two"], "-o", path, *shape).output
    text = text_of(path)
    evaluated = command("evaluate", runs["two"], *shape).output
    score = re.search(r"seed 0: (.*? %) ± (\S+) \(", evaluated)
    assert score
    assert f"two <2>: {score[0].removeprefix('seed 0: ')}" in said
    assert f"{score[1].removesuffix(' %')} ± {score[2]} %" in text
    assert f"Written to {path}" in said
    assert "two <2>" in text
    assert "seed 0 split test episodes 12" in text
    assert re.search(r"2 of \d+ settings differ: one two <2> shots 1 2 filters 16 17", text)
    again = ["tfmeta", "report", str(runs["one"]), str(runs["two"]), "--ways", "2"]
    assert shlex.join(again) in text
    path.write_text("mine")
    refused = command("report", runs["one"], "-o", path, code=1).output
    assert "is no report" in refused


def test_runs_that_cannot_be_compared_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "report.html"

    def refused(*arguments: object) -> str:
        result = CliRunner().invoke(main, [str(x) for x in ("report", *arguments, "-o", path)])
        assert isinstance(result.exception, SystemExit), result.exception
        assert not path.exists()
        return " ".join(result.output.split())

    said = refused(runs["one"], runs["two"])
    assert "shots=1 for 'one' and shots=2 for 'two <2>'; --shots sets it for all" in said
    said = refused(runs["one"], runs["elsewhere"])
    assert "must have the same test data" in said
    assert "differ in their names of classes: 'c" in said or "of 'elsewhere' alone" in said
    said = refused(runs["one"], runs["one"] / ".." / "one")
    assert "is given twice" in said
    assert "is no run folder" in refused(tmp_path)
    assert "Missing argument" in refused()


def test_runs_that_take_any_number_of_ways_follow_those_that_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = blocks([f"c{i}" for i in range(8)])
    monkeypatch.setattr(run_data, "load_data", lambda _: (part, part, part))
    free = options_of(["glyphs", "--ways", "7"])
    three, four = (
        options_of(["glyphs", "-a", "maml", "--inner-learning-rate", "1", "--ways", str(ways)])
        for ways in (3, 4)
    )
    shape = {"ways": None, "shots": 1, "queries": 1, "seed": 0}
    for settings, ways in (({"a": free, "b": three}, 3), ({"a": free, "b": free}, 5)):
        assert sampler_of_all(settings, "test", None, shape).ways == ways
    with pytest.raises(ValueError, match=r"ways=3 for 'b' and ways=4 for 'c'$"):
        sampler_of_all({"b": three, "c": four}, "test", None, shape)
    with pytest.raises(ValueError, match="`ways` must be 3, the number of outputs"):
        sampler_of_all({"a": free, "b": three}, "test", None, {**shape, "ways": 5})


def test_other_examples_of_the_same_names_are_other_data() -> None:
    names = ["a", "b", "c"]
    check_same_data("x", blocks(names), "y", blocks(names), "test")
    with pytest.raises(ValueError, match=r"'x' with .* and 'y' with .*, whose examples differ"):
        check_same_data("x", blocks(names), "y", blocks(names, seed=1), "test")
    with pytest.raises(ValueError, match="number of classes: 3 and 2"):
        check_same_data("x", blocks(names), "y", blocks(names[:2]), "test")


def options_of(words: list[str]) -> Settings:
    """Return the settings that `tfmeta train` makes of its arguments."""
    context = train.make_context("train", words)
    values = dict(context.params)
    for name in ("run_path", "resume", "overwrite", "save_every", "workers"):
        del values[name]
    class_lists(values)
    return settings_from(**values)


BASES = {
    "any number": ["glyphs", "--ways", "7"],
    "fixed number": ["glyphs", "-a", "maml", "--inner-learning-rate", "0.07"],
    "arguments": ["glyphs", "-a", "soft-k-means", "--set", "transductive=true"],
    "omniglot": ["omniglot", "--preset", "maml", "--data-dir", "some where"],
    "a folder": ["FOLDER", "--image-size", "20", "--grayscale", "--invert", "--skip-unreadable"],
}


@pytest.mark.parametrize("base", BASES)
def test_the_command_to_train_again_gives_the_same_settings(base: str, tmp_path: Path) -> None:
    words = [str(tmp_path) if word == "FOLDER" else word for word in BASES[base]]
    cases = [words]
    # Each option by itself, with a value that is not the default.
    for option in train.params:
        if option.name in (*repeat.NOT_SETTINGS, *repeat.LISTS, "data", "algorithm", "ways"):
            continue
        name = max(option.opts, key=len)
        if name in words or name in ("--preset", "--data-dir", "--image-size", "--network"):
            continue
        if getattr(option, "is_flag", False):
            continue
        choices = getattr(option.type, "choices", None)
        share = ("rate" in name and "halving" not in name) or "momentum" in name
        value = choices[-1] if choices else "0.03" if share else "3"
        cases.append([*words, name, str(value)])
    cases.append([*words, "--network", "resnet12"])
    done = 0
    for case in cases:
        settings = None
        with contextlib.suppress(click.UsageError):  # an option that this learner has not
            settings = options_of(case)
        if settings is None:
            continue
        done += 1
        again = shlex.split(repeat.train_command(settings, train.params, "runs/a b"))
        assert again[:2] == ["tfmeta", "train"]
        assert again[-2:] == ["--output", "runs/a b"]
        assert options_of(again[2:]) == settings, case
    assert done > 12
