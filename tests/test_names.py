"""What `tfmeta` shows: every public name, documented modules among them, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tfmeta

ROOT = Path(__file__).parents[1]


def test_all_names_are_there_and_no_others_are_shown() -> None:
    assert len(set(tfmeta.__all__)) == len(tfmeta.__all__)
    assert set(dir(tfmeta)) == {*tfmeta.__all__, "__version__"}
    for name in tfmeta.__all__:
        assert getattr(tfmeta, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'plot'"):
        _ = tfmeta.plot


def test_what_the_documents_name_can_be_had_from_the_top() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "".join(path.read_text() for path in documents if path.name != "design.md")
    named = set(re.findall(r"\btfmeta\.([A-Za-z_]\w*)", text))
    # The last is where the base class of the gradient family is, for methods that build on it.
    assert named - {"algorithms"} <= set(tfmeta.__all__)


def test_save_state_is_a_callback() -> None:
    assert tfmeta.callbacks.SaveState is tfmeta.states.SaveState


def test_the_package_is_the_command() -> None:
    command = [sys.executable, "-m", "tfmeta", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == f"tfmeta, version {tfmeta.__version__}"
