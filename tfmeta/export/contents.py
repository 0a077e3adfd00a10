"""Which files of a folder an export wrote, by a list that travels with them.

The list is where SavedModels have a place for what is not TensorFlow's, in the form of `sha256sum`:
`sha256sum -c assets.extra/SHA256SUMS` in the folder says whether all of it is as it was written.
"""

from __future__ import annotations

import re
from pathlib import Path

from tfmeta.digests import digests, files_below

LIST = Path("assets.extra", "SHA256SUMS")
# What every SavedModel has, whether the list is whole or not.
_ALWAYS = re.compile(
    r"saved_model\.pb|fingerprint\.pb|variables/variables\.(index|data-\d+-of-\d+)"
)


def write_list(folder: Path) -> None:
    """Write the list of all files that are in a folder."""
    lines = [f"{digest}  {name}\n" for name, digest in digests(folder, folder).items()]
    file = folder / LIST
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(lines), encoding="utf-8")


def others(folder: Path) -> list[str]:
    """Return the names of files and links in a folder that no export wrote.

    Args:
        folder: A folder; without a list, none of its files is an export's.
    """
    names = [file.relative_to(folder).as_posix() for file in files_below(folder)]
    if LIST.as_posix() not in names:
        return names
    lines = (folder / LIST).read_text(encoding="utf-8", errors="replace").splitlines()
    listed = {line[66:] for line in lines} | {LIST.as_posix()}
    return [x for x in names if x not in listed and not _ALWAYS.fullmatch(x)]
