"""The documentation site: names and pages are all there, links lead somewhere, figures are true."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest

import tfmeta

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
QUICKSTART = DOCS / "quickstart.ipynb"


def load(path: str) -> Any:
    """Return a program of the repository as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages() -> list[Path]:
    return [*sorted(DOCS.glob("*.md")), *sorted((DOCS / "api").glob("*.md"))]


def links(path: Path) -> list[tuple[str, str]]:
    """Return the links of a document that leave no repository: file and anchor."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", path.read_text(), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [urldefrag(t)[:2] for t in targets if not re.match(r"\w+:", t)]


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings and of the names that it documents."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    words = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[\s]+", "-", w) for w in words} | set(re.findall(r"^::: (\S+)", text, re.M))


def names_of(module: ModuleType) -> list[str]:
    """Return the public names that are a module's own, or that it says are."""
    own = [name for name, value in vars(module).items() if _is_own(module, name, value)]
    return list(getattr(module, "__all__", own))


def _is_own(module: ModuleType, name: str, value: Any) -> bool:
    return not name.startswith("_") and getattr(value, "__module__", "") == module.__name__


def test_every_public_name_is_in_the_api() -> None:
    text = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    shown = set(re.findall(r"^(?:::: |      heading: )tfmeta\.(\S+)", text, re.MULTILINE))
    missing = []
    for name in tfmeta.__all__:
        value = getattr(tfmeta, name)
        if name in shown:
            continue
        if not isinstance(value, ModuleType):
            missing.append(name)
        # `callbacks` has another module's, and `distribution` what learners call for themselves.
        elif name not in ("callbacks", "distribution"):
            missing += [f"{name}.{x}" for x in names_of(value) if f"{name}.{x}" not in shown]
    # Of no use to others, though without an underscore.
    inner = {"layers.ordinary_batch_norm", "losses.of_class_numbers", "losses.task_losses"}
    assert set(missing) <= inner


def test_a_function_is_not_shown_as_the_module_of_its_name() -> None:
    text = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    for name in re.findall(r"^::: tfmeta\.(\S+)", text, re.MULTILINE):
        value: Any = tfmeta
        for part in name.split(".")[:-1]:
            value = getattr(value, part)
        if (
            isinstance(value, ModuleType)
            and (ROOT / f"tfmeta/{name.replace('.', '/')}.py").exists()
        ):
            assert isinstance(getattr(value, name.split(".")[-1]), ModuleType), name


def test_every_page_is_in_the_navigation_and_is_there() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    listed = re.findall(r"^ +- .*?([\w/]+\.(?:md|ipynb))$", navigation, re.MULTILINE)
    from_elsewhere = {"changelog.md", "contributing.md", "security.md"}
    there = {str(path.relative_to(DOCS)) for path in [*pages(), QUICKSTART]}
    assert sorted(listed) == sorted(there | from_elsewhere)


def test_links_lead_to_files_and_headings() -> None:
    for path in [ROOT / "README.md", *pages()]:
        for target, anchor in links(path):
            found = (path.parent / unquote(target)).resolve() if target else path
            assert found.exists(), f"{path.name}: {target}"
            if anchor:
                assert anchor in anchors(found), f"{path.name}: {target}#{anchor}"


@pytest.mark.parametrize(
    ("question", "page", "words"),
    [
        ("my images are 84×84 RGB in folders", "your_data.md", 'from_directory("photos", size=84)'),
        ("logits or probabilities?", "your_data.md", "## Logits or probabilities?"),
        ("resume on a cluster", "resume.md", "### On a cluster"),
        ("add my own learner", "new_algorithm.md", "class R2D2(tfmeta.MetaLearner)"),
        ("run on a phone", "lite.md", "tfmeta.export.lite(learner"),
    ],
)
def test_a_newcomer_is_two_clicks_away(question: str, page: str, words: str) -> None:
    reached = {DOCS / "index.md"}
    for _ in range(2):
        ahead = {path.parent / target for path in reached for target, _ in links(path) if target}
        reached |= {path.resolve() for path in ahead if path.suffix == ".md"}
    assert DOCS / page in reached, question
    assert words in (DOCS / page).read_text(), question


def test_figures_are_those_that_were_measured() -> None:
    command = [sys.executable, "benchmarks/figures.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_paragraph_is_cut_by_the_place_of_a_figure() -> None:
    # A comment at the beginning of a line ends the paragraph before it.
    for path in [ROOT / "README.md", *pages()]:
        assert not re.search(r"^<!-- figure", path.read_text(), re.MULTILINE), path.name


def test_a_figure_that_was_not_measured_is_noticed() -> None:
    figures = load("benchmarks/figures.py")
    source = "gradient_family.json method=MAML/accuracy .1f"
    measured = json.loads((figures.RESULTS / "gradient_family.json").read_text())
    score = next(row["accuracy"] for row in measured if row["method"] == "MAML")
    text = f"<!-- figure: {source} -->1.0<!-- end --> %"
    assert figures.filled(text) == f"<!-- figure: {source} -->{score:.1f}<!-- end --> %"
    for wrong, said in {
        "figure: gradient_family.json method=none/accuracy .1f": "0 entries have 'method=none'",
        "figure: gradient_family.json method=MAML/nothing .1f": "there is no 'nothing'",
        "figure: nothing.json a .1f": "nothing.json",
        'figure: omniglot.md none "5-way 1-shot"': "no table has a row",
        "table: none": "none",
    }.items():
        with pytest.raises(ValueError, match=re.escape(said)):
            figures.filled(f"<!-- {wrong} -->1<!-- end -->")
    with pytest.raises(ValueError, match="not closed"):
        figures.filled(f"<!-- figure: {source} -->1")


def cells() -> list[dict[str, Any]]:
    notebook = json.loads(QUICKSTART.read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_quickstart_has_what_it_prints() -> None:
    assert [cell["execution_count"] for cell in cells()] == list(range(1, len(cells()) + 1))
    outputs = [output for cell in cells() for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    assert all(output.get("name", "stdout") == "stdout" for output in outputs)
    (drawn,) = (o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {}))
    assert base64.b64decode(drawn) == (DOCS / "episode.png").read_bytes()
    assert all("print(" not in "".join(c["source"]) or c["outputs"] for c in cells())
    (right,) = re.findall(r"right: (\d+) of (\d+)", "".join(str(o.get("text")) for o in outputs))
    assert "names {} of the {} others".format(*right) in (ROOT / "README.md").read_text()
    assert not re.search(r'"[^"]*(?:/home/|/tmp/|/root/)', QUICKSTART.read_text())
    assert QUICKSTART.stat().st_size < 300_000


@pytest.mark.slow
def test_the_quickstart_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nbclient", reason="needs the extra `docs`")
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    executed = load("docs/theme/notebook.py").executed()
    printed = "".join(o.get("text", "") for c in executed.cells for o in c.get("outputs", []))
    accuracy = re.search(r"([\d.]+) % ± [\d.]+ \(95 % CI, 300 episodes\)", printed)
    assert accuracy is not None
    assert float(accuracy[1]) > 90
    assert "the same answers: True" in printed


class Links(HTMLParser):
    """The links and anchors of a page of HTML."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given[key] or "" for key in ("id", "name") if key in given}
        key = {"a": "href", "img": "src"}.get(tag)
        if key and given.get(key):
            self.targets.append(given[key] or "")


def dead_links(site: Path) -> Iterator[str]:
    """Yield the links within a site that lead nowhere."""
    parsed = {page.resolve(): Links(page) for page in site.rglob("*.html")}
    for page, found in parsed.items():
        if page.name == "404.html":
            continue  # whose links begin where the site is served
        for link in found.targets:
            target, anchor = urldefrag(link)
            if re.match(r"[a-z]+:", target):
                continue
            path = (page.parent / unquote(target)).resolve() if target else page
            path = path / "index.html" if path.is_dir() else path
            ids = parsed[path].anchors if path in parsed else {unquote(anchor)}
            if not path.is_file() or (anchor and unquote(anchor) not in ids):
                yield f"{page.relative_to(site)}: {link}"


@pytest.mark.slow
def test_the_site_builds_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(dead_links(tmp_path.resolve()))
    shown = {name for page in tmp_path.glob("api/*/index.html") for name in Links(page).anchors}
    functions = [n for n in tfmeta.__all__ if not isinstance(getattr(tfmeta, n), ModuleType)]
    assert {f"tfmeta.{name}" for name in functions} <= shown


@pytest.mark.slow
def test_an_example_is_whole_as_a_page() -> None:
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    literate = load("docs/theme/pages.py").literate
    for path in (ROOT / "examples").glob("*.py"):
        _, _, program = path.read_text().split('"""', 2)
        blocks = re.findall(r"^```python\n(.*?)^```$", literate(path.read_text()), re.M | re.S)
        page = literate(path.read_text())
        lines = [line for line in program.splitlines() if line.strip()]
        code = [line for line in lines if not re.match(r"#( |$)", line)]
        assert [x for b in blocks for x in b.splitlines() if x.strip() and x in code] == code
        comments = [line[2:].strip() for line in lines if re.match(r"# ", line)]
        assert all(comment in page for comment in comments)
