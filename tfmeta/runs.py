"""A run: the settings that decide it, and the folder that keeps what comes of it."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from tfmeta.data.benchmarks import OMNIGLOT_PRESETS
from tfmeta.files import replacing
from tfmeta.meta_learner import MetaLearner

# The parts into which the classes of every data set are split.
SPLITS = ("train", "validation", "test")

_GRADIENT = {"ways": 5, "meta_batch_size": 16, "steps": 200}
# What an algorithm is trained with where nothing is said.
DEFAULTS: dict[str, dict[str, int]] = {
    "maml": _GRADIENT,
    "fomaml": _GRADIENT,
    "maml++": _GRADIENT,
    "prototypical": {"ways": 20, "meta_batch_size": 1, "steps": 100},
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides the result of a run.

    `data` is a data set's name or a folder of images, `data_options` are the arguments of
    `tfmeta.data.load` or `ClassDataset.from_directory`, `images` says how other images are made
    like those trained on. `classes` names the classes of each part of a folder, so that the parts
    stay the same when classes are added to it.
    """

    data: str
    data_options: dict[str, Any]
    algorithm: str
    ways: int
    shots: int
    queries: int
    meta_batch_size: int
    steps: int
    epochs: int
    learning_rate: float
    learning_rate_halving: int | None
    inner_learning_rate: float
    inner_steps: int
    evaluation_steps: int | None
    batch_norm: str
    downsample: str
    filters: int
    distance: str
    validation_episodes: int
    seed: int
    images: dict[str, Any] = dataclasses.field(default_factory=dict)
    classes: dict[str, list[str]] | None = None

    @property
    def is_folder(self) -> bool:
        """Whether `data` is a folder of images; its path is absolute then."""
        return os.path.isabs(self.data)

    @property
    def random_rotation(self) -> bool:
        """Whether the data's preset has each class of each episode turned at random."""
        preset = OMNIGLOT_PRESETS.get(self.data_options.get("preset", ""), {})
        return preset.get("rotations") == "episode"

    @property
    def fixed_ways(self) -> bool:
        """Whether the network's last layer fixes the number of classes of a task."""
        return self.algorithm != "prototypical"

    @property
    def transductive(self) -> bool:
        """Whether a prediction depends on the images that are classified together."""
        return self.fixed_ways and self.batch_norm == "transductive"


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], what: str) -> None:
    """Raise unless each of the values `now` is what it was when something was started.

    Raises:
        ValueError: If one differs.
    """
    for name, value in now.items():
        if before.get(name) != value:
            raise ValueError(
                f"`{name}` must be {before.get(name)!r} as when {what} was started. "
                f"Received: {name}={value!r}"
            )


class Run:
    """The folder of a run: settings, model, history, learning curve, and `states` to go on from.

    Args:
        path: The folder; it need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.settings_file = self.path / "settings.json"
        self.model_file = self.path / "model.keras"
        self.history_file = self.path / "history.csv"
        self.curve_file = self.path / "learning_curve.png"
        self.states = self.path / "states"

    def check_free(self, overwrite: bool) -> None:
        """Raise unless a new run may be written here.

        Args:
            overwrite: Whether the files of an older run may be replaced; nothing else ever is.

        Raises:
            FileExistsError: If the folder holds a run and `overwrite` is false, or holds
                something else.
        """
        others = (file for file in self.path.glob("*") if not file.match("worker_*.log"))
        if not self.path.exists() or (self.path.is_dir() and not any(others)):
            return
        if not self.settings_file.is_file():
            raise FileExistsError(f"'{self.path}' exists and is no run folder; nothing is changed")
        if not overwrite:
            raise FileExistsError(
                f"'{self.path}' holds a run; choose another --output, continue it with --resume, "
                "or replace it with --overwrite"
            )

    def start(self, settings: Settings) -> None:
        """Make the folder and write the settings; an older run's files go."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.clear()
        self.write_settings(settings)

    def clear(self) -> None:
        """Remove what training has written, besides the settings."""
        states = [*self.states.glob("state-*"), *self.states.glob(".state-*")]
        for file in (self.model_file, self.history_file, self.curve_file, *states):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it is not there, or has something else in it
            self.states.rmdir()

    def write_settings(self, settings: Settings) -> None:
        """Write the settings."""
        with replacing(self.settings_file) as beside:
            beside.write_text(json.dumps(dataclasses.asdict(settings), indent=2) + "\n")

    def settings(self) -> Settings:
        """Read the settings.

        Raises:
            FileNotFoundError: If this is no run folder.
            ValueError: If the file is damaged, or of another version.
        """
        if not self.settings_file.is_file():
            raise FileNotFoundError(f"'{self.path}' is no run folder: it has no settings.json")
        try:
            values = dict(json.loads(self.settings_file.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"'{self.settings_file}' is damaged or of another version ({error!r})"
            ) from error
        known = {field.name for field in dataclasses.fields(Settings)}
        lacking, unknown = known - {"images", "classes"} - values.keys(), values.keys() - known
        if lacking or unknown:
            raise ValueError(
                f"'{self.settings_file}' is damaged or of another version (it lacks "
                f"{sorted(lacking) or 'nothing'}, and has {sorted(unknown) or 'nothing'} that this "
                "version does not know)"
            )
        return Settings(**values)

    def resumed(self, settings: Settings) -> Settings:
        """Return the settings to continue this run with; only the epochs may differ from before.

        Raises:
            FileNotFoundError: If this is no run folder.
            ValueError: If `settings` differ from those of the run.
        """
        before = self.settings()
        fixed = {f.name for f in dataclasses.fields(Settings)} - {"epochs", "images", "classes"}
        now = {name: getattr(settings, name) for name in sorted(fixed)}
        check_same(dataclasses.asdict(before), now, f"'{self.path}'")
        return dataclasses.replace(before, epochs=settings.epochs)

    def learner(self) -> MetaLearner:
        """Load the learner as it was after the last finished epoch.

        Raises:
            FileNotFoundError: If no epoch was finished.
            ValueError: If the file is damaged.
        """
        if not self.model_file.is_file():
            raise FileNotFoundError(
                f"'{self.path}' has no model.keras: no epoch of that run was finished"
            )
        try:
            learner: MetaLearner = keras.models.load_model(self.model_file)
        # What is wrong with a file comes as ValueError, KeyError, BadZipFile, ...
        except Exception as error:
            raise ValueError(
                f"'{self.model_file}' is damaged or of another version ({error!r})"
            ) from error
        return learner

    def history(self) -> list[dict[str, str]]:
        """Read what was logged, an epoch a row."""
        if not self.history_file.is_file():
            return []
        with self.history_file.open(newline="") as file:
            return list(csv.DictReader(file))

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        """Write the history, an epoch a row."""
        with replacing(self.history_file) as beside, beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[-1])
            writer.writeheader()
            writer.writerows(rows)
