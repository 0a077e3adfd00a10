"""Fill the figures in README.md and docs/*.md from what was measured.

`python benchmarks/figures.py` writes them, `--check` says which of them differ. A document marks a
figure's place by its source in `benchmarks/results`:

    <!-- figure: FILE.json PATH FORMAT -->98.67<!-- end -->
    <!-- figure: FILE.md ROW COLUMN -->98.67 ± 0.16<!-- end -->
    <!-- table: NAME -->
    <!-- end -->

PATH has the keys from the outside inwards with `/` between them, where `key=value` takes the one
entry of a list for which that is true, and `a=b&c=d` that for which both are. ROW is how the first
cell of a table's row begins, COLUMN the head of the column. NAME is a function in `TABLES`.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_PLACE = re.compile(r"(<!-- (figure|table): (.+?) -->)(.*?)(<!-- end -->)", re.DOTALL)
_BEGIN = re.compile(r"<!-- (?:figure|table)\b")


def read(name: str) -> Any:
    """Return what is in a file of JSON."""
    return json.loads((RESULTS / name).read_text())


def found(value: Any, path: str) -> Any:
    """Return what is at a path in what was read."""
    for part in path.split("/"):
        if isinstance(value, list) and "=" in part:
            asked = dict(one.split("=", 1) for one in part.split("&"))
            rows = [row for row in value if all(str(row.get(k)) == v for k, v in asked.items())]
            if len(rows) != 1:
                raise ValueError(f"{path!r}: {len(rows)} entries have {part!r}; one must")
            value = rows[0]
        elif isinstance(value, list):
            value = value[int(part)]
        elif part in value:
            value = value[part]
        else:
            raise ValueError(f"{path!r}: there is no {part!r} among {list(value)}")
    return value


def cell(text: str, row: str, column: str) -> str:
    """Return a cell of the first Markdown table that has the row and the column."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = (
            [c.strip() for c in line.strip().strip("|").split("|")] for line in table.splitlines()
        )
        for cells in rows:
            if column in head and cells[0].startswith(row):
                return str(cells[head.index(column)])
    raise ValueError(f"no table has a row that begins with {row!r} and a column {column!r}")


def figure(source: str) -> str:
    """Return a figure by its source."""
    name, *where = shlex.split(source)
    if len(where) != 2:
        raise ValueError("a figure needs a file and two words behind it")
    if name.endswith(".json"):
        return format(found(read(name), where[0]), where[1])
    return cell((RESULTS / name).read_text(), *where)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n" + "\n".join(f"| {' | '.join(line)} |".replace("  ", " ") for line in lines) + "\n"


def scored(row: dict[str, Any]) -> str:
    """Return a score and its interval."""
    return f"{row['accuracy']:.2f} ± {row['ci95']:.2f}"


def omniglot() -> str:
    """Return the scores on Omniglot that README.md has."""
    text = (RESULTS / "omniglot.md").read_text()
    settings = ["5-way 1-shot", "5-way 5-shot", "20-way 1-shot", "20-way 5-shot"]
    prototypical = [cell(text, "`vinyals_final`, 4,800", c) for c in [*settings, "training"]]
    rows = [["`PrototypicalNetwork`", *prototypical]]
    for name in ("maml", "fomaml"):
        score, time = (cell(text, f"`{name}`, preset `vinyals`", c) for c in ("score", "training"))
        rows.append([f"`{name.upper()}`", score, "", "", "", time])
    return table(["Omniglot, percent", *settings, "training"], rows)


def gradient_family() -> str:
    """Return the gradient-based family in the same few minutes."""
    rows = read("gradient_family.json")
    return table(
        ["", "5-way 1-shot", "outer steps"],
        ([row["method"], scored(row), f"{row['outer_steps']:,}"] for row in rows),
    )


def frozen_text() -> str:
    """Return the heads on frozen vectors of text."""
    rows = read("frozen_text.json")
    by_method: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row["shots"]):
        by_method.setdefault(row["method"], []).append(scored(row))
    return table(["", "1 shot", "5 shots"], ([name, *cells] for name, cells in by_method.items()))


def beside(name: str, shots: tuple[int, int]) -> str:
    """Return the scores of methods, each with its paired difference from one of them."""
    rows = read(name)["rows"]
    by_method: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: (row["shots"], -row["accuracy"])):
        cells = by_method.setdefault(row["method"], [])
        same = row["difference"] == row["difference_ci95"] == 0
        difference = f"{row['difference']:+.2f} ± {row['difference_ci95']:.2f}".replace("-", "−")
        cells += [scored(row), "" if same else difference]
    head = [f"{n} shot{'s' * (n > 1)}" for n in shots]
    columns = ["", head[0], "difference", head[1], "difference"]
    return table(columns, ([name, *cells] for name, cells in by_method.items()))


def text_intents() -> str:
    """Return what a sentence wants, beside tf-idf."""
    return beside("text_intents.json", (1, 5))


def time_series() -> str:
    """Return whose pulse it is, beside the Prototypical Network."""
    return beside("time_series.json", (1, 3))


def learners() -> str:
    """Return the processor time of an outer step, beside a Prototypical Network's."""
    rows = sorted(read("learners.json")["rows"], key=lambda row: row["milliseconds"])
    return table(
        ["", "milliseconds of an outer step"],
        ([f"`{row['learner']}`", f"{row['milliseconds']:.0f}"] for row in rows),
    )


def exchange() -> str:
    """Return how long workers take to exchange their gradients, in milliseconds."""
    results = [row for row in read("distribution.json")["results"] if "exchange" in row]
    numbers = ("4 kB", "40 kB", "0.4 MB", "4 MB", "16 MB", "50 MB")
    return table(
        ["an exchange of", *numbers],
        (
            [f"{row['workers']} workers", *(f"{1000 * s:.1f}" for s in row["exchange"].values())]
            for row in results
        ),
    )


def steps_of_workers() -> str:
    """Return what a step takes with one worker and with two, in milliseconds."""
    one, two = (found(read("distribution.json")["results"], f"workers={n}") for n in (1, 2))
    names = {"stride": "Conv4, strided, 28×28", "pool": "Conv4, pooled, 28×28"}
    # The gradient has about 100,000 numbers.
    exchanged = two["exchange"]["100000"]
    return table(
        [
            "MAML, five inner steps, 4 tasks a worker",
            *("1 worker", "2 workers", "of which drawing", "an exchange of as much"),
        ],
        (
            [
                name,
                *(f"{1000 * s:.1f}" for s in (one["step"][key]["step"], two["step"][key]["step"])),
                *(f"{1000 * s:.1f}" for s in (two["step"][key]["draw"], exchanged)),
            ]
            for key, name in names.items()
        ),
    )


def workers_on_paper() -> str:
    """Return up to how many workers doubling pays."""

    def many(number: int) -> str:
        return f"{number}, a task each" if number == 32 else str(number)

    return table(
        [
            *("", "seconds a task", "doubling pays up to"),
            *("half is arithmetic up to", "speed-up there is"),
        ],
        (
            [
                f"{row['network']}, {row['place']}".replace("x", "×", 1),
                f"{row['task']:.3g}",
                *(many(row[key]) for key in ("doubling_pays_to", "half_arithmetic_to")),
                f"{row['speed_up']:.1f}",
            ]
            for row in read("distribution.json")["paper"]
        ),
    )


def meta_step() -> str:
    """Return milliseconds a task of an outer step, beside PyTorch's."""
    files = {
        False: ("meta_step_threads.json", "tfmeta-all-threads"),
        True: ("meta_step.json", "tfmeta"),
    }

    def times(network: str, first_order: bool) -> tuple[list[str], list[str]]:
        name, ours = files[first_order]
        rows = [
            row["results"]
            for row in read(name)["rows"]
            if row["problem"]["network"] == network
            and row["problem"]["first_order"] is first_order
            and row["problem"]["steps"] in (1, 5)
            and row["problem"]["tasks"] == 32
            and {"torch-loop", "torch-vmap"} <= set(row["results"])
        ]
        per_task = [{who: r["ms_per_task"] for who, r in row.items()} for row in rows]
        rivals = [min(row["torch-loop"], row["torch-vmap"]) for row in per_task]
        return [f"{row[ours]:.1f}" for row in per_task], [f"{x:.1f}" for x in rivals]

    rows = []
    for network in ("strided", "pooled"):
        for first_order, order in ((False, "second order"), (True, "first order")):
            ours, rivals = times(network, first_order)
            rows.append([f"{network}, K=1 / 5, {order}", " / ".join(ours), " / ".join(rivals)])
    return table(["", "tfmeta", "PyTorch, the faster of a loop and `vmap`"], rows)


TABLES: dict[str, Callable[[], str]] = {
    made.__name__: made
    for made in (
        *(omniglot, gradient_family, frozen_text, text_intents, time_series, learners),
        *(exchange, steps_of_workers, workers_on_paper, meta_step),
    )
}


def filled(text: str) -> str:
    """Return a document with all of its figures.

    Raises:
        ValueError: If a source is not there, names nothing, or is not closed.
    """

    def one(match: re.Match[str]) -> str:
        begin, kind, source, _, end = match.groups()
        try:
            value = figure(source) if kind == "figure" else TABLES[source]()
        except (KeyError, OSError, ValueError) as error:
            raise ValueError(f"{begin}: {error}") from error
        return f"{begin}{value}{end}"

    places = len(_BEGIN.findall(text))
    if places != len(_PLACE.findall(text)):
        raise ValueError("a figure's place is not closed by <!-- end -->, or has no source")
    return _PLACE.sub(one, text)


def documents() -> list[Path]:
    """Return the documents that may have figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> int:
    """Write or check the figures; return how many documents differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing, and fail if one differs"
    )
    check = parser.parse_args().check
    different = 0
    for path in documents():
        before = path.read_text()
        try:
            after = filled(before)
        except ValueError as error:
            raise SystemExit(f"{path.relative_to(ROOT)}: {error}") from error
        if after == before:
            continue
        different += 1
        if check:
            names = (f"{path.relative_to(ROOT)}, {which}" for which in ("as it is", "measured"))
            lines = (before.splitlines(), after.splitlines())
            print(*difflib.unified_diff(*lines, *names, n=0, lineterm=""), sep="\n")
        else:
            path.write_text(after)
    if check and different:
        print("python benchmarks/figures.py writes what was measured")
    return different


if __name__ == "__main__":
    sys.exit(1 if main() and "--check" in sys.argv else 0)
