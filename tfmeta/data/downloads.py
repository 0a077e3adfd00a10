"""What is said of a data set before it is downloaded, and of one whose preparation was cut off."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tfmeta.named_data import NAMED, in_bytes
from tfmeta.saying import say


def announce(builder: Any) -> None:
    """Say the licence of a data set and what it takes of network and disk.

    Args:
        builder: That of TensorFlow Datasets.
    """
    config = "" if builder.builder_config is None else f"/{builder.builder_config.name}"
    name = builder.name + config
    known = [named for named in NAMED.values() if named.source in (name, builder.name)]
    licence = known[0].licence if known else "see its home"
    # TensorFlow Datasets has figures of zero for what it does not know.
    download = int(builder.info.download_size or 0) or (known[0].download if known else 0)
    prepared = int(builder.info.dataset_size or 0)
    say(
        f"{name}: licence: {licence}. Home: {builder.info.homepage or 'not said'}\n"
        f"Download: {in_bytes(download) if download else 'of unknown size'}; "
        f"prepared: {in_bytes(prepared) if prepared else 'of a size not known beforehand'}, in "
        f"'{os.fspath(builder.data_dir)}'"
    )


def refuse_half_finished(builder: Any) -> None:
    """Raise an error if a preparation has left a folder behind, or is still going on.

    Args:
        builder: That of TensorFlow Datasets.

    Raises:
        FileExistsError: If there is such a folder; it is named.
    """
    folder = Path(os.fspath(builder.data_dir))
    left = sorted(folder.parent.glob(f"incomplete.*_{folder.name}"))
    if left:
        raise FileExistsError(
            f"The preparation of {builder.name!r} was interrupted, or goes on in another process. "
            f"Wait for that one, or remove the folder and call again. Received: '{left[0]}'"
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"The folder of {builder.name!r} holds no whole data set: a preparation or a copy was "
            f"interrupted. Remove it, or copy it anew. Received: '{folder}'"
        )
