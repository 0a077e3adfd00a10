"""A run: the settings that decide it, and the folder that keeps what comes of it."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfmeta.bounded_json import parsed, shown
from tfmeta.choices import OMNIGLOT_PRESETS
from tfmeta.files import replacing
from tfmeta.history import read_history
from tfmeta.inside import check_inside
from tfmeta.learner_table import LEARNERS
from tfmeta.locks import Writer, one_writer
from tfmeta.setting_values import EXPECTED, wrong_with
from tfmeta.setting_values import SPLITS as SPLITS

if TYPE_CHECKING:
    from tfmeta.meta_learner import MetaLearner

# Class names are most of it: this is some 500,000.
_LONGEST_SETTINGS = 2**24

# Of the inner loop, where none is given and none is looked for.
INNER_RATE = 0.4


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides the result of a run.

    `data` is a data set's name or a folder of images, `data_options` are the arguments of
    `tfmeta.data.load` or `ClassDataset.from_directory`, `images` says how other images are made
    like those trained on. `also` are further data sets, by name or folder, and the arguments of
    each; their images get the shape of those of `data`, and each episode is of one data set.
    `classes` names the classes of each part of folders, so that the parts stay the same when
    classes are added to them; of `min_per_class` images at least, where they were shared out at
    random. `network` is the name of a backbone, or the absolute path of an encoder, whose file is
    known by its SHA-256. `arguments` are those of the learner's constructor that have no field of
    their own, as `tfmeta.learner_arguments.read` returns them.
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
    inner_learning_rate: float | None
    inner_steps: int
    evaluation_steps: int | None
    batch_norm: str
    downsample: str
    filters: int | None
    distance: str
    validation_episodes: int
    seed: int
    images: dict[str, Any] = dataclasses.field(default_factory=dict)
    classes: dict[str, list[str]] | None = None
    network: str = "conv4"
    pretrain_epochs: int = 0
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    network_sha256: str | None = None
    freeze: bool = False
    batch_norm_momentum: float | None = None
    min_per_class: int = 1
    also: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

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
        return LEARNERS[self.algorithm].fixed_ways

    @property
    def trained_before(self) -> bool:
        """Whether the learner begins with a network that has learnt something."""
        return self.network_sha256 is not None or self.pretrain_epochs > 0


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


def check_values(values: Mapping[str, Any], where: str) -> None:
    """Raise unless values are such as settings can have.

    Args:
        values: By name; not all need be there.
        where: What they are of, for the message.

    Raises:
        ValueError: If one is of another type, too large or unknown; it is named.
    """
    if (wrong := wrong_with(values, EXPECTED)) is not None:
        raise ValueError(f"{where} is damaged or of another version ({wrong})")


def check_pretraining(settings: Settings, workers: int) -> None:
    """Raise a `ValueError` if several workers were to pretrain, which is done by one process."""
    if settings.pretrain_epochs and workers > 1:
        raise ValueError(
            "`pretrain_epochs` must be 0 with several workers: pretrain in one process, and go on "
            "with --resume and more workers when training over episodes has begun. Received: "
            f"pretrain_epochs={settings.pretrain_epochs} and {workers} workers"
        )


class Run:
    """The folder of a run: settings, model, history, learning curve, and `states` to go on from.

    `pretraining` has those of the encoder's own training, if there is one.

    It may be a stranger's: what is read from it is checked, and no link leads out of it.

    Args:
        path: The folder; it need not exist yet.
    """

    _writer: Writer | None = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.settings_file = self.path / "settings.json"
        self.model_file = self.path / "model.keras"
        self.history_file = self.path / "history.csv"
        self.curve_file = self.path / "learning_curve.png"
        self.states = self.path / "states"
        self.pretraining = self.path / "pretraining"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one that writes to the folder; also within a block that is so already.

        Raises:
            BlockingIOError: If another process writes there.
            ValueError: If a link leads out of the folder.
        """
        if self._writer is not None:
            yield
            return
        with one_writer(self.path) as self._writer:
            try:
                self.check_links()
                yield
            finally:
                self._writer = None

    def for_workers(self) -> dict[str, str]:
        """Return the environment variables by which processes of this one may write there too."""
        return {} if self._writer is None else self._writer.environment()

    def check_links(self) -> None:
        """Raise a `ValueError` if a link leads out of the folder, of files that are a run's."""
        check_inside(
            self.path,
            self.settings_file,
            self.model_file,
            self.history_file,
            self.curve_file,
            self.states,
            self.pretraining,
            *self.path.glob("*.log"),
        )

    def check_still_there(self) -> None:
        """Raise unless the folder is the one that training began with, and has its settings.

        Raises:
            FileNotFoundError: If it was removed, or its settings were.
        """
        if self._writer is not None:
            self._writer.check()
        if not self.settings_file.is_file():
            raise FileNotFoundError(
                f"'{self.settings_file}' was removed during training, without which '{self.path}' "
                "is no run. Nothing more is saved: put it back and use --resume, or start anew"
            )

    def check_free(self, overwrite: bool) -> None:
        """Raise unless a new run may be written here.

        Args:
            overwrite: Whether the files of an older run may be replaced; nothing else ever is.

        Raises:
            FileExistsError: If the folder holds a run and `overwrite` is false, or holds
                something else.
        """
        self.check_links()
        if not self.path.exists() or (self.path.is_dir() and not self._others()):
            return
        if not self.settings_file.is_file():
            raise FileExistsError(f"'{self.path}' exists and is no run folder; nothing is changed")
        if not overwrite:
            raise FileExistsError(
                f"'{self.path}' holds a run; choose another --output, continue it with --resume, "
                "or replace it with --overwrite"
            )

    def check_begun(self) -> None:
        """Raise unless there is a run to go on with.

        Raises:
            FileNotFoundError: If nothing was written here yet, or the folder is none of a run.
        """
        self.check_links()
        if self.settings_file.is_file():
            return
        if self.path.exists() and (not self.path.is_dir() or self._others()):
            raise FileNotFoundError(f"'{self.path}' is no run folder: it has no settings.json")
        why = "nothing was saved there yet" if self.path.exists() else "there is no such folder"
        raise FileNotFoundError(
            f"'{self.path}' has nothing to resume: {why}. To begin, run the same command without "
            "--resume"
        )

    def _others(self) -> list[Path]:
        """Return what is in the folder, but for what comes before the settings."""
        return [file for file in self.path.glob("*") if not _comes_first(file)]

    def start(self, settings: Settings, *, keep_pretraining: bool = False) -> None:
        """Make the folder and write the settings; an older run's files go."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.clear(keep_pretraining=keep_pretraining)
        self.write_settings(settings)

    def clear(self, *, keep_pretraining: bool = False) -> None:
        """Remove what training has written, besides the settings."""
        from tfmeta.states.files import files_in

        self.check_links()
        for file in (self.model_file, self.history_file, self.curve_file):
            file.unlink(missing_ok=True)
        for folder in (self.states, *([] if keep_pretraining else [self.pretraining])):
            for file in files_in(folder):
                file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it is not there, or has something else in it
                folder.rmdir()

    def write_settings(self, settings: Settings) -> None:
        """Write the settings.

        Raises:
            ValueError: If they are not such as can be read again.
        """
        if (wrong := wrong_with(dataclasses.asdict(settings), EXPECTED)) is not None:
            raise ValueError(wrong)
        with replacing(self.settings_file) as beside:
            beside.write_text(json.dumps(dataclasses.asdict(settings), indent=2) + "\n")

    def settings(self) -> Settings:
        """Read the settings.

        Raises:
            FileNotFoundError: If this is no run folder.
            ValueError: If the file is damaged, or of another version.
        """
        self.check_links()
        if not self.settings_file.is_file():
            raise FileNotFoundError(f"'{self.path}' is no run folder: it has no settings.json")
        try:
            if (size := self.settings_file.stat().st_size) > _LONGEST_SETTINGS:
                raise ValueError(f"it has {size} bytes")
            text = self.settings_file.read_text()
            values = dict(parsed(text, longest=_LONGEST_SETTINGS))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"'{self.settings_file}' is damaged or of another version ({error!r})"
            ) from error
        known = {field.name for field in dataclasses.fields(Settings)}
        # Those that came later have the default that was the only value before.
        needed = {field.name for field in dataclasses.fields(Settings) if _has_no_default(field)}
        lacking, unknown = needed - values.keys(), values.keys() - known
        if lacking or unknown:
            raise ValueError(
                f"'{self.settings_file}' is damaged or of another version (it lacks "
                f"{sorted(lacking) or 'nothing'}, and has {shown(sorted(unknown) or 'nothing')} "
                "that this version does not know)"
            )
        check_values(values, f"'{self.settings_file}'")
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

        Keras makes it of the classes of Keras and this package alone, whatever the file asks for.

        Raises:
            FileNotFoundError: If no epoch was finished.
            ValueError: If the file is damaged, holds no learner, or asks for other code.
        """
        import keras

        from tfmeta.meta_learner import MetaLearner

        self.check_links()
        if not self.model_file.is_file():
            raise FileNotFoundError(
                f"'{self.path}' has no model.keras: no epoch of that run was finished"
            )
        try:
            learner = keras.models.load_model(self.model_file, safe_mode=True)
            if not isinstance(learner, MetaLearner):
                raise TypeError(f"it holds a {type(learner).__name__}, which is no learner")
        # What is wrong with a file comes as ValueError, KeyError, BadZipFile, ...
        except Exception as error:
            raise ValueError(
                f"'{self.model_file}' is damaged or of another version ({error!r})"
            ) from error
        return learner

    def history(self) -> list[dict[str, str]]:
        """Read what was logged, an epoch a row.

        Raises:
            ValueError: If the file is damaged; the line is named.
        """
        self.check_links()
        return read_history(self.history_file) if self.history_file.is_file() else []

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        """Write the history, an epoch a row."""
        with replacing(self.history_file) as beside, beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[-1])
            writer.writeheader()
            writer.writerows(rows)


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _comes_first(file: Path) -> bool:
    """Return whether a file may be there before the settings are, which make a folder a run's."""
    return file.match("worker_*.log") or file.name.startswith(".tfmeta")
