"""The command `tfmeta` itself, which has the others."""

from __future__ import annotations

import io
import sys
from typing import Any

import click

from tfmeta import __version__


def reported() -> tuple[type[BaseException], ...]:
    """Return what comes of arguments, files and machine, and not of a mistake in the program."""
    tensorflow = sys.modules.get("tensorflow")
    of_tensorflow = () if tensorflow is None else (tensorflow.errors.OpError,)
    return (ValueError, TypeError, OSError, MemoryError, ImportError, *of_tensorflow)


class Commands(click.Group):
    """Shows errors that name an argument or a file as one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        # A name of a file need not be text, and an alphabet may lack it: it is shown escaped.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except reported() as error:
            if ctx.params["traceback"]:
                raise
            raise click.ClickException(str(error) or type(error).__name__) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--traceback", is_flag=True, help="Show where in the code an error arose.")
def main(traceback: bool) -> None:
    """Learn to classify from a few examples.

    Train on classes with many examples, then adapt to new classes with a few examples of each:

    \b
      tfmeta train glyphs --output runs/glyphs
      tfmeta evaluate runs/glyphs
      tfmeta adapt runs/glyphs --support few_images/ --output adapted
      tfmeta predict adapted other_images/

    
    And to look for better arguments than those that are given:
      tfmeta tune glyphs --search learning_rate=0.0003:0.03:log --epochs 3
    """
