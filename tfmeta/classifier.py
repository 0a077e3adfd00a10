"""A classifier of image files that a learner made from a few examples of each class."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from tfmeta.algorithms import SimpleShot
from tfmeta.checks import check_count, did_you_mean
from tfmeta.class_changes import add_class, remove_class
from tfmeta.data import ClassDataset
from tfmeta.data.images import check_image_options, stack_images
from tfmeta.digests import digests
from tfmeta.export import Preprocessing
from tfmeta.export.contents import others
from tfmeta.export.serving import check_names, check_unknown
from tfmeta.files import SCRATCH, replacing
from tfmeta.formats import FORMATS, remove
from tfmeta.inputs import known_example
from tfmeta.keras_files import read_model
from tfmeta.meta_learner import MetaLearner
from tfmeta.threshold import UNKNOWN, Threshold

# Images that one call of the network takes, where predictions do not depend on it.
_BATCH = 64
# What a model is needed for by add_class and remove_class, and what to do without.
_TO_CHANGE = (
    "for its classes to change",
    "adapt with format='keras', or adapt anew with the examples of all classes",
)


class Answer(NamedTuple):
    """What a classifier says of an image.

    Attributes:
        name: The class, or "unknown".
        probability: That of the likeliest class.
        classes: The likeliest classes, each with its probability, in order.
    """

    name: str
    probability: float
    classes: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Classifier:
    """An adapted model, the names of its classes and how image files become its input.

    Attributes:
        model: `[n, height, width, channels]`, scaled as `EpisodeSampler` does → logits
            `[n, classes]`; a Keras model, or what was read of another format.
        class_names: One a logit.
        images: `size`, `grayscale`, `invert`, `dtype` and `alpha`, as in
            `tfmeta.data.ClassDataset.from_directory`.
        transductive: Whether a prediction depends on the images that are classified with it.
        format: In which the model is saved: `"keras"`, `"saved_model"` or `"tflite"`.
        unknown: What tells which images are of none of the classes, if anything does.

    Raises:
        TypeError: If `unknown` is no `tfmeta.unknown.Threshold`.
        ValueError: If there is one, and a class is called "unknown"; or there is no such format, or
            not for images of other types than uint8 or with their opacity.

    Example:
        ```python
        classifier = tfmeta.Classifier.adapt(learner, "few_images")
        classifier.classify(["photo.jpg"])                     # [("cat", 0.98)]
        classifier.add_class("dog", ["rex.jpg", "bello.jpg"]).save("my_classifier")
        ```
    """

    model: Any
    class_names: tuple[str, ...]
    images: dict[str, Any]
    transductive: bool = False
    format: str = "keras"
    unknown: Threshold | None = None

    def __post_init__(self) -> None:
        """Check the names of classes, and the format."""
        if self.format not in FORMATS:
            raise ValueError(
                f"`format` must be one of {', '.join(map(repr, FORMATS))}. Received: "
                f"format={self.format!r}.{did_you_mean(self.format, FORMATS)}"
            )
        _check_format(self.format, self.images)
        check_unknown(self.unknown, self.class_names)

    @classmethod
    def adapt(
        cls,
        learner: MetaLearner,
        folder: str | os.PathLike[str],
        images: dict[str, Any] | None = None,
        *,
        ways: int | None = None,
        transductive: bool | None = None,
        skip_unreadable: bool = False,
        format: str = "keras",
        unknown: Threshold | None = None,
    ) -> Classifier:
        """Adapt a learner to a few images of each class.

        Args:
            learner: A trained learner.
            folder: One sub-folder of images a class.
            images: As the attribute; by default of the size and with the channels that the
                learner's model takes.
            ways: The number of classes there must be, where the learner's network fixes it.
            transductive: As the attribute; by default the learner's.
            skip_unreadable: Leaves out files that cannot be read, with a warning.
            format: As the attribute.
            unknown: As the attribute.

        Returns:
            The classifier.

        Raises:
            ValueError: If the number of classes is wrong, one is called "unknown" where there is a
                threshold, an image cannot be read, there is no such format, or the model takes no
                images of one size and `images` does not say either.
        """
        images = images_for(learner) if images is None else images
        if format in FORMATS:
            _check_format(format, images)
        transductive = learner.transductive if transductive is None else transductive
        support = ClassDataset.from_directory(folder, skip_unreadable=skip_unreadable, **images)
        if ways is not None and support.num_classes != ways:
            raise ValueError(
                f"`folder` must hold {ways} classes, as many as the network has outputs. Received: "
                f"folder='{folder}' with {support.num_classes} ({', '.join(support.class_names)})"
            )
        check_unknown(unknown, support.class_names)
        labels = np.repeat(
            np.arange(support.num_classes, dtype=np.int32), np.diff(support.class_offsets)
        )
        pixels = unit_range(support.examples[support.class_indices])
        model = learner.adapt(pixels, labels)
        return cls(model, support.class_names, images, transductive, format, unknown)

    def classify(self, files: Sequence[str | os.PathLike[str]]) -> list[tuple[str, float]]:
        """Return the class and its probability for each image file.

        Where the threshold says so the class is "unknown", and the probability that of the
        likeliest class.
        """
        return [(answer.name, answer.probability) for answer in self.rank(files)]

    def rank(self, files: Sequence[str | os.PathLike[str]], top: int | None = None) -> list[Answer]:
        """Return for each image file what `classify` does, and the likeliest classes in order.

        Args:
            files: The images.
            top: How many classes; `None` is all of them.

        Raises:
            TypeError: If `top` is no integer.
            ValueError: If `top` is less than 1, or more than there are classes.

        Example:
            >>> classifier.rank(["photo.jpg"], top=2)
            [Answer(name='cat', probability=0.98, classes=(('cat', 0.98), ('dog', 0.02)))]
        """
        top = len(self.class_names) if top is None else check_count("top", top)
        if top > len(self.class_names):
            raise ValueError(
                f"`top` must be at most {len(self.class_names)}, as many as there are classes. "
                f"Received: top={top}"
            )
        inside = FORMATS[self.format].prepares
        # Resized here as the support set was, so that they become one array, whatever is inside.
        images = {**self.images, "invert": False} if inside else self.images
        stacked = stack_images(files, **images)
        pixels = stacked if inside else unit_range(stacked)
        batch = len(files) if self.transductive else _BATCH
        parts = [pixels[i : i + batch] for i in range(0, len(files), batch)]
        logits = np.concatenate([self.model(part) for part in parts])
        probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
        refused = np.zeros(len(files), bool) if self.unknown is None else self.unknown(logits)
        found = []
        for p, no in zip(probabilities, refused, strict=True):
            # Of equal ones the first, as of the logits.
            order = np.argsort(-p, kind="stable")[:top]
            classes = tuple((self.class_names[i], float(p[i])) for i in order)
            name, probability = classes[0]
            found.append(Answer(UNKNOWN if no else name, probability, classes))
        return found

    def add_class(self, name: str, files: Sequence[str | os.PathLike[str]]) -> Classifier:
        """Return a classifier that knows one class more, without the images of the others.

        It answers as one that was adapted to the images of all classes. Where a threshold was
        fitted it stays, and keeps its rates less well the more classes there are.

        Args:
            name: What the class is called; it becomes the last one.
            files: Images of it, one or more.

        Returns:
            A new classifier; this one, and what was saved of it, stay as they are.

        Raises:
            TypeError: If `name` is no text.
            ValueError: If there is a class of that name, or the model cannot take one class more:
                see `tfmeta.add_class`. That of a SavedModel or LiteRT file never can.
        """
        names = (*self.class_names, name)
        check_names(names)
        check_unknown(self.unknown, names)
        model = self._keras_model(*_TO_CHANGE)
        if isinstance(files, str | os.PathLike) or not files:
            raise ValueError(f"`files` must be one or more images. Received: files={files!r}")
        images = stack_images(files, **self.images)
        changed = add_class(model, unit_range(images))
        return dataclasses.replace(self, model=changed, class_names=names)

    def remove_class(self, name: str) -> Classifier:
        """Return a classifier that knows one class less, as if that had never been shown.

        Args:
            name: What the class is called.

        Raises:
            ValueError: If there is no such class, or no other, or the model cannot go without one:
                see `tfmeta.remove_class`.
        """
        if name not in self.class_names:
            raise ValueError(
                f"`name` must be one of {', '.join(map(repr, self.class_names))}. "
                f"Received: name={name!r}.{did_you_mean(name, self.class_names)}"
            )
        label = self.class_names.index(name)
        names = self.class_names[:label] + self.class_names[label + 1 :]
        changed = remove_class(self._keras_model(*_TO_CHANGE), label)
        return dataclasses.replace(self, model=changed, class_names=names)

    def _keras_model(self, purpose: str, instead: str) -> keras.Model:
        """Return the model, unless it is a program that was read of a file."""
        if isinstance(self.model, keras.Model):
            return self.model
        raise ValueError(
            f"The model must be a Keras model {purpose}. Received: one that was read of the "
            f"format {self.format!r}; {instead}"
        )

    @staticmethod
    def check_free(path: str | os.PathLike[str], overwrite: bool) -> None:
        """Raise unless `save` may write to `path`; what else is in that folder stays there.

        Raises:
            FileExistsError: If `path` holds a classifier and `overwrite` is false, or holds
                something else, also where a model would be.
        """
        folder = Path(path)
        if not folder.exists():
            return
        names = [name for name in _names(folder) if not SCRATCH.fullmatch(name)]
        if folder.is_dir() and not names:
            return
        # A model alone is what an interrupted `save` leaves.
        unfinished = names in [[known.file] for known in FORMATS.values()]
        if not unfinished and not (folder / "classifier.json").is_file():
            raise FileExistsError(f"'{path}' exists and is no adapted model; nothing is changed")
        for known in FORMATS.values():
            strange = _others(folder / known.file)
            if strange:
                raise FileExistsError(
                    f"'{folder / strange[0]}' is no part of an adapted model, and would be "
                    "replaced; nothing is changed"
                )
        if not overwrite:
            raise FileExistsError(f"'{path}' holds an adapted model; --overwrite replaces it")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, in its format, and `classifier.json` into the folder `path`.

        Raises:
            FileExistsError: As `check_free(path, overwrite=True)`.
            OSError: If `path` cannot be written.
            ValueError: If the model is one that was read of a SavedModel or LiteRT file.
        """
        model = self._keras_model("to be written", "copy the folder that it was read of")
        self.check_free(path, overwrite=True)
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        chosen = FORMATS[self.format]
        chosen.write(
            model,
            folder / chosen.file,
            self.class_names,
            _preprocessing(self.images),
            self.unknown,
        )
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del facts["model"]
        facts["unknown"] = self.unknown and dataclasses.asdict(self.unknown)
        # Whenever this is interrupted, names do not fit the model of other classes.
        facts["files"] = digests(folder / chosen.file, folder)
        facts["sha256"] = _digest(facts)
        with replacing(folder / "classifier.json") as beside:
            beside.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        for other in FORMATS.values():
            if other is not chosen:
                remove(folder / other.file)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Classifier:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If `path` holds no classifier.
            ImportError: If the model's format needs a package that is not installed.
            ValueError: If a file is damaged.
        """
        folder = Path(path)
        file = folder / "classifier.json"
        if not file.is_file():
            raise FileNotFoundError(f"'{path}' is no adapted model: it has no classifier.json")
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            if facts.pop("sha256") != _digest(facts):
                raise ValueError("its SHA-256 is wrong")
            written = dict(facts.pop("files"))
            _check(facts)
            facts["class_names"] = tuple(facts["class_names"])
            if (unknown := facts.get("unknown")) is not None:
                facts["unknown"] = Threshold(**unknown)
            classifier = cls(model=None, **facts)
            chosen = FORMATS[classifier.format]
            file = folder / chosen.file
            found = digests(file, folder)
            for name in sorted({*written, *found}):
                if written.get(name) != found.get(name):
                    file = folder / name
                    raise ValueError("it is not the file that classifier.json was written with")
            model = chosen.read(file)
        except ImportError:
            raise
        # What is wrong with a file comes as ValueError, TypeError, BadZipFile, ...
        except Exception as error:
            raise ValueError(f"'{file}' is damaged or of another version ({error!r})") from error
        return dataclasses.replace(classifier, model=model)


def read_encoder(path: str | os.PathLike[str]) -> MetaLearner:
    """Return a learner on an encoder that Keras saved.

    Args:
        path: A file `.keras` of an encoder, on which SimpleShot is put, or of a learner.

    Raises:
        ValueError: If it is damaged, or asks for other code than Keras's and this package's.
    """
    model = read_model(path)
    return model if isinstance(model, MetaLearner) else SimpleShot(model)


def images_for(learner: MetaLearner) -> dict[str, Any]:
    """Return how image files become what a learner's model takes.

    Raises:
        ValueError: If it takes no images of one size.
    """
    example = learner.example if learner.built else known_example(learner.model)
    shape = tuple(getattr(example, "shape", ()))
    if len(shape) != 4 or None in shape[1:] or shape[3] not in (1, 3):
        raise ValueError(
            "The model must take images [n, height, width, 1 or 3] of one size. Received: a model "
            f"{learner.model.name!r} that takes {shape or example}"
        )
    return {"size": list(shape[1:3]), "grayscale": shape[3] == 1}


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else [folder.name]


def _others(path: Path) -> list[str]:
    """Return what at the place of a model, and below it, is not of one, relative to the folder."""
    if path.is_symlink():
        return [path.name]
    return [f"{path.name}/{name}" for name in others(path)] if path.is_dir() else []


def _check(facts: dict[str, Any]) -> None:
    """Raise unless the values are of the types that `save` writes."""
    names, images = facts["class_names"], facts["images"]
    if not names or not isinstance(names, list) or not all(isinstance(x, str) for x in names):
        raise TypeError(f"class_names must be a list of names. Received: {names!r}")
    _preprocessing(images)
    check_image_options(None, "lanczos", images.get("dtype"))
    flags = [v for k, v in images.items() if k not in ("size", "dtype")] + [facts["transductive"]]
    if "scale" in images or not all(isinstance(flag, bool) for flag in flags):
        raise TypeError(
            f"grayscale, invert, alpha and transductive must be flags. Received: {facts}"
        )


def _check_format(format: str, images: dict[str, Any]) -> None:
    """Raise unless models of a format take images that are made in this way."""
    kept = {name: images[name] for name in ("dtype", "alpha") if images.get(name)}
    if FORMATS[format].prepares and kept not in ({}, {"dtype": "uint8"}):
        others = ", ".join(repr(name) for name, known in FORMATS.items() if not known.prepares)
        raise ValueError(
            f"`format` must be one of {others} for images of other types than uint8 or with their "
            f"opacity, which the preprocessing inside of others does not take. Received: "
            f"format={format!r}, images={images}"
        )


def _preprocessing(images: dict[str, Any]) -> Preprocessing:
    """Return what brings images of 8 bits to what they are made into."""
    return Preprocessing(**{k: v for k, v in images.items() if k not in ("dtype", "alpha")})


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def unit_range(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Scale images as `EpisodeSampler` does, bit for bit; floats stay what they are."""
    if pixels.dtype.kind == "f":
        return pixels.astype(np.float32)
    return pixels.astype(np.float32) * np.float32(1 / np.iinfo(pixels.dtype).max)
