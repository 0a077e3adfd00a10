"""Environments where this package is not."""

from __future__ import annotations

import importlib.metadata
import sysconfig
import venv
from pathlib import Path

from packaging.requirements import Requirement


def python_with(folder: Path, *names: str) -> Path:
    """Return an interpreter that finds these distributions, what they need, and nothing else."""
    venv.create(folder, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", paths))
    for distribution in needed_by(*names):
        for file in distribution.files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution.locate_file(top))))
    return Path(sysconfig.get_path("scripts", "venv", paths)) / "python"


def needed_by(*names: str) -> list[importlib.metadata.Distribution]:
    """Return the installed distributions that these need, themselves included."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        distribution = importlib.metadata.distribution(waiting.pop())
        found[distribution.metadata["Name"].lower().replace("_", "-")] = distribution
        for line in distribution.requires or ():
            requirement = Requirement(line)
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if wanted and requirement.name.lower().replace("_", "-") not in found:
                waiting.append(requirement.name)
    assert "tfmeta" not in found
    return list(found.values())
