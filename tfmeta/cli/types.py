"""Types of options, which refuse in words what they do not take."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from tfmeta.choices import BENCHMARKS, FILTERS, did_you_mean

POSITIVE = click.IntRange(min=1)
SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)
FOLDER = click.Path(path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FILE_TO_WRITE = click.Path(dir_okay=False, path_type=Path)


class Name(click.Choice[str]):
    """A choice that suggests the nearest one for a misspelt value."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the value."""
        if value not in self.choices:
            known = ", ".join(self.choices)
            self.fail(f"{value!r} is none of {known}.{did_you_mean(value, self.choices)}")
        return str(value)


class Rate(click.ParamType[float]):
    """A learning rate; click's own range lets NaN through."""

    name = "float"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Check the value."""
        rate = click.FLOAT.convert(value, param, ctx)
        if not 0 < rate < math.inf:
            self.fail(f"{value!r} is not a positive, finite number.")
        return rate


class Network(click.ParamType[str]):
    """The name of a backbone, or the file of an encoder that Keras saved."""

    name = "network"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the value; a file comes back as an absolute path."""
        if value in FILTERS:
            return str(value)
        if not str(value).endswith(".keras"):
            known = ", ".join(FILTERS)
            self.fail(
                f"{value!r} is none of {known}, nor a file .keras.{did_you_mean(value, FILTERS)}"
            )
        if not Path(value).is_file():
            self.fail(f"There is no file {value!r}.")
        return str(Path(value).resolve())


class Data(click.ParamType[str]):
    """The name of a data set, or a folder of images."""

    name = "data"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the value; a folder comes back as an absolute path."""
        if not value:  # Path("") would be the current folder
            self.fail("it must not be empty.")
        if value not in BENCHMARKS and not Path(value).is_dir():
            if Path(value).exists():
                self.fail(f"{value!r} is a file, not a folder of images.")
            known = ", ".join(BENCHMARKS)
            self.fail(
                f"{value!r} is neither a folder nor one of the data sets {known}."
                f"{did_you_mean(value, BENCHMARKS)}"
            )
        return str(value) if value in BENCHMARKS else str(Path(value).resolve())


class Given(click.ParamType[tuple[str, str]]):
    """An argument by name, and a text: its value, or the values to search."""

    name = "name=value"

    def __init__(self, form: str) -> None:
        self.form = form

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Split at the sign of equality; the name may be written as the option is."""
        name, sign, text = str(value).partition("=")
        if not sign:
            self.fail(f"{value!r} is not of the form {self.form}.")
        return name.strip().lstrip("-").replace("-", "_"), text


class DataSets(click.ParamType[list[str]]):
    """Names of data sets and folders of images, with commas between them."""

    name = "data sets"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[str]:
        """Return each as its name, or as the absolute path of its folder."""
        found: list[str] = []
        for data in str(value).split(","):
            if not data.strip():  # Path("") would be the current folder
                self.fail(f"a name must not be empty. Received: {value!r}")
            if not Path(data).exists():
                data = data.strip()  # a blank after the comma
            if data not in BENCHMARKS and not Path(data).is_dir():
                self.fail(
                    f"{data!r} is neither a folder nor one of {', '.join(BENCHMARKS)}."
                    f"{did_you_mean(data, BENCHMARKS)}"
                )
            found.append(data if data in BENCHMARKS else str(Path(data).resolve()))
            if found.count(found[-1]) > 1:
                self.fail(f"{data!r} stands there twice.")
        return found
