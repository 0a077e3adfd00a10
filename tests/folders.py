"""Made-up folders of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def folder_of(path: Path, names: list[str], each: int = 2) -> Path:
    """Writes a folder of small images, a class a sub-folder, whose grey is the class's number."""
    for c, name in enumerate(names):
        (path / name).mkdir(parents=True)
        for i in range(each):
            image = Image.fromarray(np.full((9, 7, 3), c % 256, np.uint8))
            image.save(path / name / f"{i}.png")
    return path
