"""Executes the quickstart; `make notebook` also keeps what it prints, and its picture.

`python docs/theme/notebook.py --write`, with the extra `docs` installed.
"""

from __future__ import annotations

import argparse
import base64
import tempfile
from pathlib import Path

import nbclient
import nbformat

FILE = Path(__file__).parents[1] / "quickstart.ipynb"
PICTURE = Path(__file__).parents[1] / "episode.png"


def executed() -> nbformat.NotebookNode:
    """Run all cells in a folder of their own, and return them with what came of it.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell fails.
    """
    notebook = nbformat.read(FILE, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=900, resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = _for_readers(cell.outputs)
    return notebook


def _for_readers(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Leave out what libraries log, and join what was printed."""
    kept: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.output_type != "stream":
            kept.append(output)
            continue
        if output.name != "stdout" or output.text.startswith("INFO:tensorflow"):
            continue
        if kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def picture(notebook: nbformat.NotebookNode) -> bytes:
    """Return the one picture that a notebook draws, as a PNG."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    (drawn,) = (o.data["image/png"] for o in outputs if "image/png" in o.get("data", {}))
    return base64.b64decode(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    notebook = executed()
    if chosen.write:
        nbformat.write(notebook, FILE)
        PICTURE.write_bytes(picture(notebook))


if __name__ == "__main__":
    main()
