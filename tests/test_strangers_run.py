"""A run folder that a stranger made: nothing outside of it is touched, and no code of theirs runs.

Every folder that is opened here ends in an error that names a file of it, or in what a right state
would have given. Thousands are generated, with every field hostile in turn.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import random
import shutil
import sqlite3
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.test_states import EPOCHS, SAMPLER, STEPS, new_learner
from tests.watched import nothing_outside
from tfmeta import tuning
from tfmeta.cli.settings import with_data_there
from tfmeta.learner_table import LEARNERS
from tfmeta.runs import Run, Settings
from tfmeta.setting_values import EXPECTED
from tfmeta.states import SaveState, newest
from tfmeta.states import files as state_files

SETTINGS = Settings(
    data="glyphs",
    data_options={},
    algorithm="prototypical",
    ways=3,
    shots=1,
    queries=2,
    meta_batch_size=2,
    steps=STEPS,
    epochs=EPOCHS,
    learning_rate=0.03,
    learning_rate_halving=None,
    inner_learning_rate=0.4,
    inner_steps=1,
    evaluation_steps=None,
    batch_norm="transductive",
    downsample="pool",
    filters=4,
    distance="cosine",
    validation_episodes=2,
    seed=0,
    images={"size": [4, 4], "grayscale": True, "invert": False},
)
HISTORY = "epoch,accuracy,loss\r\n0,0.5,1.5\r\n1,0.6,1.25\r\n"
PATHS = ("/etc/passwd", "../../outside/mine.txt", "~/.bashrc", "a\\b", "mine.txt", "\0", "//x/y")
NAMES = (
    *(
        "__class__",
        "__dict__",
        "__init__",
        "__module__",
        "_model",
        "model",
        "params",
        "on_epoch_end",
    ),
    *("filepath", "backup_dir", "_backup_path", "_weights_path", "_training_metadata_path"),
    *("log_dir", "filename", "csv_file", "writer", "monitor_op", "save_freq", "delete_checkpoint"),
    *("wait", "best", "best_weights", "epoch", "history", "_current_epoch", "patience", "seen"),
    *(
        "count",
        "phase",
        "report",
        "files",
        "_secret",
        "table",
        "nothing",
        "",
        "a" * 2000,
        "\x1b[2J",
    ),
)


class Counting(keras.callbacks.Callback):
    """One of a user's own, with attributes of every kind."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.count, self.phase, self.files, self.table = 0, "warm", ["a"], {"a": 1.0}
        self.report, self._secret, self.nothing = str(folder / "report.txt"), "none", None
        self.array, self._private = np.zeros(2), 0
        self.loop: list[Any] = [1]
        self.loop.append(self.loop)

    def on_train_end(self, logs: Any = None) -> None:
        Path(self.report).write_text(f"{self.count} {self.phase}")


def callbacks(folder: Path) -> list[keras.callbacks.Callback]:
    """Of every kind that writes or removes files, all of them in a folder."""
    return [
        keras.callbacks.BackupAndRestore(str(folder / "backup")),
        keras.callbacks.ModelCheckpoint(str(folder / "best.weights.h5"), save_weights_only=True),
        keras.callbacks.CSVLogger(str(folder / "log.csv")),
        keras.callbacks.EarlyStopping("loss", patience=3, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("loss"),
        Counting(folder),
        keras.callbacks.History(),
    ]


@pytest.fixture(scope="module")
def learner() -> Any:
    """One for all states, built; its values are not of interest."""
    made = new_learner()
    made.fit(SAMPLER.dataset(2), steps_per_epoch=1, verbose=0)
    return made


@pytest.fixture(scope="module")
def right(
    tmp_path_factory: pytest.TempPathFactory, learner: Any
) -> tuple[dict[str, Any], list[Any]]:
    """The facts and arrays of a state as it is written, of callbacks that have counted."""
    folder = tmp_path_factory.mktemp("right")
    made, save = begun(learner, folder)
    counting = made[5]
    counting.count, counting.phase, counting.table, counting.nothing = 5, "hot", {"b": 2.0}, 1.0
    counting.array, counting._private = np.ones(2), 3
    made[3].wait, made[3].best, made[3].best_weights = 1, 0.5, learner.get_weights()
    made[6].epoch, made[6].history = [0], {"loss": [1.0]}
    save.on_epoch_begin(0)
    save._done = STEPS
    save.on_epoch_end(0, {"loss": 1.0})
    save._until_end.close()
    made[2].on_train_end()
    state = newest(folder / "states")
    assert state is not None
    assert {c["class"]: sorted(c["changed"]) for c in state.facts["callbacks"]} == {
        "BackupAndRestore": [],
        "ModelCheckpoint": [],
        "CSVLogger": [],
        "EarlyStopping": ["best", "best_weights", "wait"],
        "ReduceLROnPlateau": [],
        "Counting": ["_private", "array", "count", "nothing", "phase", "table"],
        "History": ["epoch", "history"],
    }
    return state.facts, state.arrays


def begun(learner: Any, folder: Path) -> tuple[list[Any], SaveState]:
    """Begin a training as `fit` does, which restores the newest state in a folder."""
    made = callbacks(folder)
    save = SaveState(folder / "states")
    save._others = made
    for each in (*made, save):
        each.set_model(learner)
        each.set_params({"epochs": EPOCHS, "steps": STEPS})
    learner.stop_training = False
    for each in made:
        if not isinstance(each, keras.callbacks.BackupAndRestore):
            each.on_train_begin()
    try:
        save.on_train_begin()
    except BaseException:
        save._until_end.close()
        for each in made:
            if isinstance(each, keras.callbacks.CSVLogger):
                each.on_train_end()
        raise
    return made, save


def end(learner: Any, made: list[Any], save: SaveState) -> None:
    """Let all callbacks do what they do in an epoch and at the end."""
    with save._until_end:
        for each in (*made, save):
            each.on_epoch_begin(1)
        for each in made:
            each.on_train_batch_end(0, {"loss": 1.0})
        for each in (*made, save):
            each.on_epoch_end(1, {"loss": 1.0, "accuracy": 0.5})
        for each in (*made, save):
            each.on_train_end()


# --- What can be in a state ---------------------------------------------------------------------


def signed(facts: Any, numbers: bytes, number: str = "1") -> bytes:
    """A state as an attacker writes it: its sum is right."""
    body = (facts if isinstance(facts, bytes) else json.dumps(facts).encode()) + b"\n" + numbers
    return f"tfmeta-state {number} {hashlib.sha256(body).hexdigest()}\n".encode() + body


def anything(rng: random.Random, depth: int = 0) -> Any:
    """Any value of JSON, among them what states use to say functions and arrays."""
    kind = rng.randrange(16)
    if kind < 7 or depth > 3:
        return rng.choice(
            [None, True, 0, -1, 2**31, 2**63, 10**400, 1.5, float("nan"), float("inf"), *PATHS]
        )
    if kind == 7:
        return {"function": rng.choice([["os", "system"], ["keras.utils", "get_file"]])}
    if kind == 8:
        return {
            "array": rng.choice([0, -1, 10**9, 0.5, "0", None]),
            "scalar": rng.choice([0, True]),
        }
    if kind == 9:
        value: Any = []
        for _ in range(rng.choice([10, 40, 200])):
            value = rng.choice([[value], {"list": [value]}, {"dict": [["a", value]]}])
        return value
    if kind == 10:
        return {"dict": [[anything(rng, depth + 1), anything(rng, depth + 1)]]}
    if kind == 11:
        return {"list": [anything(rng, depth + 1)] * rng.choice([0, 1, 9 if depth else 1000])}
    if kind == 12:
        return {rng.choice(NAMES): anything(rng, depth + 1)}
    return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every dict or list within, with each of its keys or positions."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def hostile_state(rng: random.Random, right: Any) -> bytes:
    """A state that differs from a right one in one to three places, or is nothing like one."""
    facts, arrays = copy.deepcopy(right[0]), right[1]
    numbers = b"".join(array.tobytes() for array in arrays)
    kind = rng.randrange(10)
    if kind < 4:  # attributes
        saved = rng.choice(facts["callbacks"])
        saved["changed"][rng.choice(NAMES)] = anything(rng)
        if rng.random() < 0.2:
            saved["class"] = rng.choice(["Callback", "BackupAndRestore", "os.system", *PATHS])
    elif kind < 7:  # types, and names of fields
        for part, key in rng.sample(list(places(facts)), rng.randrange(1, 4)):
            if rng.random() < 0.7 or key not in (part if isinstance(part, dict) else [key]):
                part[key] = anything(rng)
            elif isinstance(part, dict):
                part[rng.choice(NAMES)] = part.pop(key)
            else:
                part.insert(0, part[key])
    elif kind == 7:  # sizes
        shape = rng.choice(facts["arrays"])
        shape[rng.randrange(2)] = rng.choice(
            [[2**40], [-1], [0, 2**62], [1] * 100, "O", "object", "V1000000000", "S5", "float128"]
        )
    elif kind == 8:  # depth
        depth = rng.choice([100, 5_000, 100_000])
        return signed(b"[" * depth + b"]" * depth if rng.random() < 0.5 else b'{"a":' * depth, b"")
    else:
        return signed(facts, rng.choice([b"", numbers[:-1], numbers * 2]), rng.choice(["1", "2"]))
    return signed(facts, numbers)


def attributes(made: list[Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in vars(c).items() if k not in ("_model", "params")} for c in made]


ALLOWED = {
    "EarlyStopping": {"wait", "best", "best_weights", "best_epoch", "stopped_epoch"},
    "ReduceLROnPlateau": {"wait", "best", "cooldown_counter"},
    "History": {"epoch", "history"},
    "BackupAndRestore": {"_batches_seen_since_last_saving", "_last_batch_seen", "_current_epoch"},
    "ModelCheckpoint": {
        *("_batches_seen_since_last_saving", "_last_batch_seen", "_current_epoch", "best")
    },
    "Counting": {"_private", "array", "count", "nothing", "phase", "table"},
}


def open_states(learner: Any, right: Any, tmp_path: Path, number: int, seed: int) -> dict[str, int]:
    """Open so many hostile states, and check each for what it may do."""
    rng = random.Random(seed)
    outcomes = {"error": 0, "passed over": 0, "right": 0}
    modules = set(sys.modules)
    run = tmp_path / "run"
    for i in range(number):
        (run / "states").mkdir(parents=True)
        file = run / "states" / "state-000000000005"
        file.write_bytes(hostile_state(rng, right))
        with nothing_outside(run):
            try:
                made, save = begun(learner, run)
            except (ValueError, OSError) as error:
                named(error, file)
                outcomes["error"] += 1
            else:
                fresh = callbacks(run)
                for now, then in zip(attributes(made), attributes(fresh), strict=True):
                    assert now.keys() >= then.keys()
                for now, then in zip(made, fresh, strict=True):
                    assert type(now) is type(then)
                    changed = {k for k in vars(then) if differs(getattr(now, k), getattr(then, k))}
                    ours = changed - {"_model", "params", "monitor_op", "csv_file", "append_header"}
                    assert ours <= ALLOWED.get(type(now).__name__, set()), (i, ours)
                    if isinstance(now, Counting):
                        assert now.phase.replace(" ", "").isalnum() or now.phase == ""
                outcomes["right" if newest(run / "states") else "passed over"] += 1
                end(learner, made, save)
        shutil.rmtree(run)
    assert {name.partition(".")[0] for name in set(sys.modules) - modules} <= {"keras", "h5py"}
    return outcomes


def differs(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list) and a[-1:] and a[-1] is a:
        return bool(b[:1] != a[:1] or b[-1] is not b)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return not np.array_equal(a, b)
    return bool(a is not b and a != b)


def test_hostile_states_set_nothing_but_what_callbacks_count(
    learner: Any, right: Any, tmp_path: Path
) -> None:
    outcomes = open_states(learner, right, tmp_path, 200, seed=0)
    assert min(outcomes.values()) > 5, outcomes


@pytest.mark.slow
def test_thousands_of_hostile_states(
    learner: Any, right: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = open_states(learner, right, tmp_path, 5000, seed=1)
    with capsys.disabled():
        print("\n5,000 hostile states:", outcomes)
    assert min(outcomes.values()) > 100, outcomes


def test_a_large_array_is_given_once(learner: Any, right: Any, tmp_path: Path) -> None:
    """What is small in the file may not become large in memory."""
    facts = copy.deepcopy(right[0])
    own = next(c for c in facts["callbacks"] if c["class"] == "Counting")["changed"]
    own["nothing"] = {"list": [own["array"]] * 1000}
    (tmp_path / "states").mkdir()
    numbers = b"".join(array.tobytes() for array in right[1])
    (tmp_path / "states" / "state-000000000005").write_bytes(signed(facts, numbers))
    with pytest.raises(ValueError, match=r"each array must be of one value\. Received: array"):
        begun(learner, tmp_path)


def test_what_is_promised_is_compared_before_it_is_read(right: Any, tmp_path: Path) -> None:
    """A file of a terabyte, of which nothing is on the disk, is not read."""
    file = tmp_path / "state-000000000005"
    file.write_bytes(signed(right[0], b""))
    os.truncate(file, 2**40)
    with pytest.raises(state_files.Damaged, match=r"bytes of numbers, which is not what it says"):
        state_files.read(file)


def test_what_a_callback_of_ones_own_counts_goes_on(
    learner: Any, right: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = b"".join(array.tobytes() for array in right[1])
    (tmp_path / "states").mkdir()
    (tmp_path / "states" / "state-000000000005").write_bytes(signed(right[0], numbers))
    made, save = begun(learner, tmp_path)
    own, early, history = made[5], made[3], made[6]
    assert (own.count, own.phase, own.table, own.nothing, own._private) == (
        *(5, "hot", {"b": 2.0}, 1.0, 3),
    )
    np.testing.assert_array_equal(own.array, np.ones(2))
    assert (early.wait, early.best, len(early.best_weights)) == (1, 0.5, len(learner.weights))
    assert (history.epoch, history.history) == ([0], {"loss": [1.0]})
    # And what is not kept is said, once.
    save.on_epoch_begin(1)
    for name in ("files", "_secret"):
        setattr(own, name, ["b"] if name == "files" else "other")
        save._taken(1, 0)
        save._taken(2, 0)
        said = f"`{name}` of the callback Counting is not in the states"
        assert caplog.text.count(said) == 1
    end(learner, made, save)


# --- The other files of a run -------------------------------------------------------------------


def write_run(folder: Path, right: Any) -> Path:
    """A run of two epochs, but for its model."""
    (folder / "states").mkdir(parents=True)
    numbers = b"".join(array.tobytes() for array in right[1])
    (folder / "states" / "state-000000000005").write_bytes(signed(right[0], numbers))
    (folder / "settings.json").write_text(json.dumps(dataclasses.asdict(SETTINGS)))
    (folder / "history.csv").write_text(HISTORY, newline="")
    return folder


def use(folder: Path) -> Any:
    """All that is read and written of a run, but for the training itself."""
    run = Run(folder)
    with run.alone():
        settings, history, state = run.settings(), run.history(), newest(run.states)
        run.write_settings(settings)
        if history:
            run.write_history(history)
        run.check_still_there()
        run.check_free(overwrite=True)
        with_data_there(settings, None)
        run.clear()
    return settings, history, state


def named(error: Exception, folder: Path) -> None:
    assert str(folder) in str(error), error
    assert len(str(error)) < 5000
    assert "\x1b" not in str(error)
    assert "Error(" not in str(error).replace("JSONDecodeError(", "").replace(
        "UnicodeDecodeError(", ""
    ).replace("ValueError(", "").replace("TypeError(", ""), error


def is_right(settings: Settings) -> bool:
    """Whether every field is what training can take; told otherwise than by the package."""
    values = dataclasses.asdict(settings)
    # There are no filters where the network is that of a file.
    filters = values.pop("filters") or 0
    counts = [v for k, v in values.items() if type(getattr(SETTINGS, k)) is int] + [filters]
    return (
        all(type(v) is int and 0 <= v < 2**32 for v in counts)
        and filters <= 2**14
        and 0 < settings.learning_rate < 1e400
        and settings.algorithm in LEARNERS
        and set(settings.data_options)
        <= {"data_dir", "folder", "preset", "size", "grayscale", "invert", "skip_unreadable"}
        and (os.path.isabs(settings.data) or settings.data in ("glyphs", "omniglot"))
    )


def hostile_text(rng: random.Random, folder: Path) -> None:
    """Make `settings.json` or `history.csv` hostile."""
    file = folder / rng.choice(["settings.json", "history.csv"])
    if file.name == "settings.json" and rng.random() < 0.8:
        values = json.loads(file.read_text())
        for part, key in rng.sample(list(places(values)), 2):
            part[key] = anything(rng)
        if rng.random() < 0.2:
            values[rng.choice(NAMES)] = anything(rng)
        file.write_text(json.dumps(values))
    elif file.name == "settings.json":
        depth = rng.choice([10, 100, 1_000, 100_000])
        text = f'{{"data": {"[" * depth}{"]" * depth}}}'
        file.write_text(rng.choice([text, "[" * depth, "[]", "1", '""', "{}", "NaN", "\ufeff{}"]))
    else:
        lines = file.read_text().splitlines()
        line = rng.randrange(len(lines))
        cells = lines[line].split(",")
        cells[rng.randrange(len(cells))] = rng.choice(
            [
                "",
                "x",
                '"',
                "\0",
                "1e999",
                "nan",
                "9" * 9999,
                "=cmd()",
                "\x1b[2J",
                "1,1",
                "1\r2",
                "-1",
            ]
        )
        lines[line] = ",".join(cells)
        rng.choice([lambda: None, lines.reverse, lines.pop, lambda: lines.insert(1, lines[1])])()
        file.write_text("\r\n".join(lines) + rng.choice(["", "\r\n"]), newline="")


def damaged(rng: random.Random, folder: Path) -> None:
    """Flip bits of one file, cut it, or swap two stretches."""
    file = rng.choice([p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()])
    data = bytearray(file.read_bytes())
    if not data:
        return
    kind = rng.randrange(3)
    if kind == 0:
        for _ in range(rng.choice([1, 1, 10])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[rng.randrange(len(data)) :]
    else:
        a, b = sorted(rng.sample(range(len(data) + 1), 2))
        data[a:b] = data[a:b][::-1]
    file.write_bytes(data)


def hostile_links(rng: random.Random, folder: Path, outside: Path) -> None:
    """Put a link, a pipe or a folder in the place of a file."""
    names = ["settings.json", "history.csv", "model.keras", "learning_curve.png", "states"]
    names += ["states/state-000000000005", ".tfmeta.lock", "states/.tfmeta.lock", "worker_0.log"]
    place = folder / rng.choice(names)
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    target = rng.choice([outside, outside / "mine.txt", outside / "none", outside / "state-123"])
    kind = rng.randrange(5)
    if kind < 2:
        place.symlink_to(target)
    elif kind == 2:
        place.symlink_to(os.path.relpath(target, place.parent))
    elif kind == 3:
        os.mkfifo(place)
    elif target.is_file():
        os.link(target, place)
    else:
        place.mkdir()


def outside_of(tmp_path: Path) -> Path:
    """A folder of the user's, with files that are called as a run's are."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in ("mine.txt", "state-123", "state-000000000001", "settings.json", "history.csv"):
        (folder / name).write_text("mine")
    return folder


def untouched(folder: Path) -> list[Any]:
    return [(p.name, p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.iterdir())]


def open_runs(right: Any, tmp_path: Path, number: int, seed: int) -> dict[str, int]:
    rng = random.Random(seed)
    outside, folder = outside_of(tmp_path), tmp_path / "run"
    before = untouched(outside)
    outcomes = {"error": 0, "right": 0}
    for i in range(number):
        write_run(folder, right)
        kind = i % 3
        if kind == 0:
            hostile_text(rng, folder)
        elif kind == 1:
            damaged(rng, folder)
        else:
            hostile_links(rng, folder, outside)
        with nothing_outside(folder):
            try:
                settings, history, _ = use(folder)
            except (ValueError, OSError) as error:
                named(error, folder)
                outcomes["error"] += 1
            else:
                assert is_right(settings)
                counted = [int(row["epoch"]) for row in history]
                assert counted == list(range(1, len(history) + 1))
                assert all(float(x) is not None for row in history for x in row.values())
                outcomes["right"] += 1
        assert untouched(outside) == before, i
        shutil.rmtree(folder)
    return outcomes


def test_hostile_and_damaged_runs(right: Any, tmp_path: Path) -> None:
    outcomes = open_runs(right, tmp_path, 300, seed=0)
    assert min(outcomes.values()) > 30, outcomes


@pytest.mark.slow
def test_thousands_of_hostile_and_damaged_runs(
    right: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = open_runs(right, tmp_path, 10_000, seed=1)
    with capsys.disabled():
        print("\n10,000 hostile and damaged runs:", outcomes)
    assert min(outcomes.values()) > 1000, outcomes


def test_the_table_of_settings_is_whole() -> None:
    assert list(EXPECTED) == [field.name for field in dataclasses.fields(Settings)]


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("", 1, "the names of columns, `epoch` the first"),
        ("loss,epoch\n", 1, "the names of columns, `epoch` the first"),
        ("epoch,loss\n0,1\n1", 3, "numbers, up to the end of the line"),
        ("epoch,loss\n0,1\n1,2,3\n", 3, "2 values"),
        ("epoch,loss\n0,1\n2,2\n", 3, "the number 1 of an epoch first"),
        ("epoch,loss\n0,a\n", 2, "numbers"),
        ('epoch,loss\n0,"1\n', 2, "values between commas"),
        (b"epoch,loss\n0,1\n1,\xff\n", 3, "UTF-8"),
    ],
)
def test_a_damaged_history_is_named_by_its_line(
    text: Any, line: int, expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "history.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(
        ValueError,
        match=rf"history.csv' is damaged: line {line} must have "
        rf"{expected}\. Received: ",
    ) as error:
        Run(tmp_path).history()
    assert str(file) in str(error.value)


# --- Models, trials and logs --------------------------------------------------------------------


def test_a_model_runs_no_code_of_its_own(tmp_path: Path) -> None:
    """Neither of a lambda, nor of a function or a class that the file names."""
    model = keras.Sequential([keras.Input([2]), keras.layers.Lambda(lambda x: x + 1)])
    learner = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
    run = Run(tmp_path / "run")
    run.path.mkdir()
    model.save(run.model_file)
    with nothing_outside(run.path), pytest.raises(ValueError, match=r"model\.keras' is damaged"):
        run.learner()
    learner.save(run.model_file)
    with pytest.raises(ValueError, match=r"it holds a Sequential, which is no learner"):
        run.learner()
    for module, name in (("os", "system"), ("subprocess", "Popen"), ("tests.watched", "Any")):
        with zipfile.ZipFile(run.model_file) as archive:
            parts = {each: archive.read(each) for each in archive.namelist()}
        config = json.loads(parts["config.json"])
        layer = config["config"]["layers"][-1]
        layer |= {"module": module, "class_name": name, "registered_name": None}
        with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
            for each, data in {**parts, "config.json": json.dumps(config)}.items():
                archive.writestr(each, data)
        shutil.copy(tmp_path / "other.keras", run.path / "model.keras")
        with (
            nothing_outside(run.path),
            pytest.raises(ValueError, match=r"model\.keras' is damaged"),
        ):
            run.learner()
        learner.save(run.model_file)


def open_models(learner: Any, tmp_path: Path, number: int, seed: int) -> dict[str, int]:
    """Open so many damaged models: each is an error that names the file, or has every weight."""
    rng, run = random.Random(seed), Run(tmp_path / "run")
    run.path.mkdir()
    learner.save(tmp_path / "model.keras")
    outcomes = {"error": 0, "right": 0}
    for i in range(number):
        shutil.copy(tmp_path / "model.keras", run.model_file)
        damaged(rng, run.path)
        with nothing_outside(run.path):
            try:
                found = run.learner()
            except ValueError as error:
                assert f"'{run.model_file}' is damaged or of another version" in str(error)  # noqa: PT017
                outcomes["error"] += 1
            else:
                for a, b in zip(found.variables, learner.variables, strict=True):
                    if "seed_generator" not in b.path:  # which Keras does not save
                        np.testing.assert_array_equal(a, b, err_msg=str(i))
                outcomes["right"] += 1
    return outcomes


def test_damaged_models(learner: Any, tmp_path: Path) -> None:
    outcomes = open_models(learner, tmp_path, 30, seed=0)
    assert outcomes["error"] > 15, outcomes


@pytest.mark.slow
def test_a_thousand_damaged_models(
    learner: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = open_models(learner, tmp_path, 1000, seed=1)
    with capsys.disabled():
        print("\n1,000 damaged models:", outcomes)
    assert outcomes["error"] > 900, outcomes
    assert outcomes["right"], "some are as they were, of one byte reversed"


def search(path: Path) -> Any:
    return tuning.search(lambda v, _: v["x"], {"x": "0.0:1.0"}, path, 2, verbose=False)


def test_the_journal_of_trials_removes_no_other_file(tmp_path: Path) -> None:
    """SQLite removes the file that a journal names as that of several databases."""
    pytest.importorskip("optuna", reason="needs Optuna")
    file, victim = tmp_path / "run" / "trials.db", tmp_path / "mine.txt"
    search(file)
    victim.write_text("mine")
    magic = bytes.fromhex("d9d505f920a163d7")
    pages, name = file.stat().st_size // 4096, os.fsencode(victim)
    head = magic + struct.pack(">IIIII", 0, 0, pages, 512, 4096)
    end = struct.pack(">I", 2**30 // 4096 + 1) + name
    end += struct.pack(">II", len(name), sum(name)) + magic
    journal = file.with_name("trials.db-journal")

    def hostile() -> None:
        journal.write_bytes(head.ljust(512, b"\0") + end)

    hostile()
    shutil.copytree(file.parent, tmp_path / "copy")
    # It is so of SQLite itself.
    with sqlite3.connect(tmp_path / "copy" / "trials.db") as connection:
        connection.execute("SELECT * FROM studies").fetchall()
    connection.close()
    assert not victim.exists()
    victim.write_text("mine")
    with pytest.raises(ValueError, match=r"trials\.db' is damaged .*-journal' is of several"):
        search(file)
    assert victim.read_text() == "mine"
    journal.unlink()
    assert len(search(file).trials) == 2


@pytest.mark.parametrize("name", ["trials.db", "trials.db-journal", "trials.db-wal"])
def test_trials_are_no_links(name: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs Optuna")
    folder = tmp_path / "run"
    search(folder / "trials.db")
    outside = tmp_path / "outside"
    shutil.copy(folder / "trials.db", outside)
    before = outside.read_bytes()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    with pytest.raises(ValueError, match=rf"{name}' must lie in .* Received: a link to"):
        search(folder / "trials.db")
    assert outside.read_bytes() == before


@pytest.mark.parametrize("value", ["-5.0", "1e9", "'a'", "NULL"])
def test_trials_of_another_space_are_refused(value: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs Optuna")
    search(tmp_path / "trials.db")
    with sqlite3.connect(tmp_path / "trials.db") as connection:
        connection.execute(f"UPDATE trial_params SET param_value = {value}")
    connection.close()
    with pytest.raises(ValueError, match=r"trials\.db' is damaged or of another version"):
        search(tmp_path / "trials.db")


@pytest.mark.parametrize(
    "options", [{"data_dir": "/tmp"}, {"data_dir": "/nowhere"}], ids=["there", "not there"]
)
def test_data_of_a_strangers_run_are_not_written(options: Any, tmp_path: Path) -> None:
    """`evaluate` reads where the settings say that the data are, and downloads to nowhere else."""
    settings = dataclasses.replace(SETTINGS, data_options={"data_dir": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match=r"where there are none: say --data-dir"):
        with_data_there(settings, None)
    there = with_data_there(settings, tmp_path / "mine")
    assert there.data_options["data_dir"] == str(tmp_path / "mine")
    (tmp_path / "glyphs-1.npz").touch()
    assert with_data_there(settings, None) == settings
