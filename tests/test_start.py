"""How the package starts: what is imported when, what is printed, and what is missing, in words."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import pytest

import tfmeta
from tests.test_cli import TINY, write_images
from tfmeta import choices, formats, kernels, training
from tfmeta.cli import loading, main
from tfmeta.data import benchmarks
from tfmeta.history import read_history
from tfmeta.models import BACKBONES
from tfmeta.runs import Run, Settings

ROOT = Path(__file__).parents[1]
# What is ours of what the commands print on standard error.
OURS = {
    "Loading TensorFlow …",
    "Reading the data …",
    "Looking for the inner learning rate …",
    "Compiling the training step …",
    "Scoring 2 episodes …",
    "Adapting …",
    "Classifying 4 image(s) …",
    "Going on in epoch 3/3, after 0 of 2 of its steps.",
}


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """A program that is called as the command is, and runs one line after the other."""
    file = tmp_path / "bin" / "tfmeta"
    file.parent.mkdir()
    file.write_text(
        "import json, sys\n"
        "import tfmeta\n"
        "from tfmeta.cli import main\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        main(line, prog_name='tfmeta')\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, (line, end.code)\n"
        "exec(sys.argv[2])\n"
    )
    return file


def ran(
    command: Path, *lines: list[str], then: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run lines of the command in one process that has nothing of this one's, and a program."""
    variables = {k: v for k, v in os.environ.items() if k != loading.VARIABLE}
    return subprocess.run(
        [sys.executable, command, json.dumps(lines), then],
        capture_output=True,
        text=True,
        env={**variables, "PYTHONPATH": str(ROOT), **environment},
    )


def others(printed: str) -> list[str]:
    """Return the lines that are neither of the command nor what the package warns of."""
    warned = ("Note: ", "Warning: ", " is transductive (by its head", "the running statistics of")
    return [x for x in printed.splitlines() if x not in OURS and not any(w in x for w in warned)]


def registered() -> set[str]:
    """Return every class of the package that Keras is to know, by its source."""
    found = set()
    for file in (ROOT / "tfmeta").rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and any(
                "register_keras_serializable(package='tfmeta')" in ast.unparse(decorator)
                for decorator in node.decorator_list
            ):
                found.add(f"tfmeta>{node.name}")
    assert len(found) > 30
    return found


def test_nothing_heavy_is_imported_to_print_a_line(command: Path) -> None:
    names = list(main.commands)
    lines = [["--version"], ["--help"], ["datasets"], *([name, "--help"] for name in names)]
    heavy = ["tensorflow", "keras", "numpy", "PIL", "matplotlib", "tensorflow_datasets", "optuna"]
    done = ran(command, *lines, then=f"print([x for x in {heavy} if x in sys.modules])")
    assert done.stdout.splitlines()[-1:] == ["[]"], done
    assert not done.stderr
    assert done.stdout.count("Usage: tfmeta") == 1 + len(names)


@pytest.mark.parametrize(
    ("argv", "asked", "found"),
    [
        (["/usr/bin/tfmeta", "train"], ["python", "/usr/bin/tfmeta", "train"], True),
        (["-m", "train"], ["python", "-W", "error", "-m", "tfmeta", "train"], True),
        (["-m"], ["python", "-m", "tfmeta.cli"], False),
        (["-m", "-m", "tfmeta"], ["python", "-m", "other", "-m", "tfmeta"], False),
        (["train.py", "tfmeta"], ["python", "train.py", "tfmeta"], False),
        (["-c"], ["python", "-c", "import tfmeta"], False),
        ([""], ["python"], False),
        ([], [], False),
    ],
)
def test_which_process_is_the_command(
    argv: list[str], asked: list[str], found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", asked)
    assert tfmeta._is_the_command() is found


def test_keras_knows_every_class_after_the_import_alone() -> None:
    # And what takes long is imported when it is asked for. Keras itself imports matplotlib.
    program = (
        "import sys, tfmeta; assert not {'optuna', 'click'} & {*sys.modules}; import keras; "
        "print(*keras.saving.get_custom_objects())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert set(done.stdout.split()) == registered()


def test_the_command_says_only_its_own_and_knows_every_class(command: Path, tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", 10)
    run = str(tmp_path / "run")
    then = """
import keras, pickle
assert pickle.loads(pickle.dumps(tfmeta.MAML)) is tfmeta.MAML
names = {}
exec("from tfmeta import *", names)
assert set(dir(tfmeta)) == {*tfmeta.__all__, "__version__"} == {*names, "__version__"} - {
    "__builtins__"
}
assert not hasattr(tfmeta, "plot")
print("known:", *keras.saving.get_custom_objects())
"""
    line = ["train", str(photos), *TINY, "--epochs", "2", "--output", run]
    done = ran(command, line, [*line, "--epochs", "3", "--resume"], then=then)
    assert done.returncode == 0, done
    assert set(done.stdout.rpartition("known: ")[2].split()) == registered()
    assert not others(done.stderr)
    assert "Going on in epoch 3/3, after 0 of 2 of its steps." in done.stderr
    # The same numbers on the screen and in the file.
    assert re.findall(r"Epoch \d/\d", done.stdout) == ["Epoch 1/2", "Epoch 2/2", "Epoch 3/3"]
    assert [row["epoch"] for row in Run(run).history()] == ["1", "2", "3"]


@pytest.mark.slow
def test_no_command_prints_what_is_not_its_own(command: Path, tmp_path: Path) -> None:
    photos, few = write_images(tmp_path / "photos", 10), write_images(tmp_path / "few", 2, 2)
    for algorithm, kind in (("prototypical", "keras"), ("maml", "saved_model")):
        run, adapted = str(tmp_path / algorithm), str(tmp_path / kind)
        done = ran(
            command,
            ["train", str(photos), *TINY, "-a", algorithm, "--epochs", "2", "--output", run],
            ["evaluate", run, "--episodes", "2"],
            ["adapt", run, "--support", str(few), "--output", adapted, "--format", kind],
            ["predict", adapted, str(few)],
        )
        assert done.returncode == 0, done
        assert not others(done.stderr)


def test_what_is_printed_before_an_error_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    def prints(end: str) -> Iterator[None]:
        with loading._unless_it_fails():
            os.write(2, b"from C++\n")
            if end:
                raise ImportError(end)
            yield

    list(prints(""))
    assert capfd.readouterr().err == ""
    with pytest.raises(ImportError, match="cannot be loaded"):
        list(prints("cannot be loaded"))
    os.write(2, b"after it\n")
    assert capfd.readouterr().err == "from C++\nafter it\n"


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_another_backend_is_refused(backend: str, command: Path, tmp_path: Path) -> None:
    message = f"set the environment variable KERAS_BACKEND=tensorflow .*KERAS_BACKEND='{backend}'"
    done = subprocess.run(
        [sys.executable, "-c", "import tfmeta"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr
    encoder = tmp_path / "encoder.keras"
    encoder.touch()
    line = ["adapt", str(encoder), "--support", str(tmp_path), "--output", str(tmp_path / "new")]
    done = ran(command, line, KERAS_BACKEND=backend)
    assert "Error: tfmeta needs Keras with the backend 'tensorflow'" in done.stderr


def test_a_backend_of_keras_own_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from tfmeta.backend import check_backend

    check_backend()
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(ImportError, match="Received: Keras with the backend 'jax'"):
        check_backend()


@pytest.mark.parametrize(
    ("library", "module", "message"),
    [
        ("matplotlib.axes", "tfmeta.plots", "pip install matplotlib"),
        ("click", "tfmeta.cli", "pip install 'click>="),
    ],
)
def test_a_missing_library_is_named(
    library: str, module: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*sys.modules]:
        if f"{name}.".startswith(f"{module}."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=message):
        importlib.import_module(module)


def test_kernels_that_cannot_be_loaded_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "kernels.py"))
    assert kernels.library.__wrapped__() is None
    assert f"there is no _tf_ops*.so in '{tmp_path}'" in caplog.text
    (tmp_path / "_tf_ops.other.so").write_bytes(b"of another platform")
    assert kernels.library.__wrapped__() is None
    assert "TensorFlow's own operations instead" in caplog.text
    assert "_tf_ops.other.so: " in caplog.text


def test_words_of_options_are_those_of_the_package() -> None:
    assert list(choices.FILTERS) == list(BACKBONES)
    for name, filters in choices.FILTERS.items():
        assert inspect.signature(BACKBONES[name]).parameters["filters"].default == filters
    assert list(choices.FORMATS) == list(formats.FORMATS)
    assert list(choices.BENCHMARKS) == list(benchmarks._LOADERS)


def test_a_history_that_counts_from_0_is_read_as_one_that_counts_from_1(tmp_path: Path) -> None:
    for name, first in (("before", 0), ("now", 1)):
        rows = [f"{first + i},{0.5 + i}" for i in range(3)]
        (tmp_path / name).write_text("\n".join(["epoch,loss", *rows, ""]))
    assert read_history(tmp_path / "before") == read_history(tmp_path / "now")
    assert [row["epoch"] for row in read_history(tmp_path / "now")] == ["1", "2", "3"]
    (tmp_path / "now").write_text("epoch,loss\n2,0.5\n")
    with pytest.raises(ValueError, match="line 2 must have the number 1 of an epoch first"):
        read_history(tmp_path / "now")


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (0, "Nothing of the training was saved yet"),
        (3, r"Going on in epoch 2/4, after 1 of 2 of its steps\."),
        (4, r"Going on in epoch 3/4, after 0 of 2 of its steps\."),
        (8, r"The run is finished: 4 of 4 epochs are done\."),
    ],
)
def test_resume_says_where_it_goes_on(step: int, words: str, tmp_path: Path) -> None:
    settings = Settings(
        **{**dict.fromkeys(Settings.__dataclass_fields__), "steps": 2, "epochs": 4},
    )
    assert re.match(words, training.where_it_goes_on(settings, Run(tmp_path), step))
