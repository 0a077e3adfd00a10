"""Pages of the site that are written elsewhere in the repository, and the links to them.

The measurements in benchmarks/results, the examples, and the documents beside README.md become
pages as they are. In the documents, links are those of the repository, which work wherever its
files are read; here they are turned into links of the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
ABOUT = ("CHANGELOG", "CONTRIBUTING", "SECURITY")
PLAIN = ("CITATION.cff", "LICENSE")
# Pages of wide tables or code, which have no list of their headings beside them.
WIDE = ("coming_from.md", "index.md", "quickstart.ipynb", "which_learner.md")
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?(\))")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def sources() -> dict[str, str]:
    """Return the address on the site of each file of the repository that is a page there."""
    found = {"README.md": "index.md"}
    found |= {"benchmarks/results": "measured.md", "examples": "examples.md"}
    found |= {f"{name}.md": f"{name.lower()}.md" for name in ABOUT}
    found |= {name: name for name in PLAIN}
    for path in sorted((ROOT / "benchmarks" / "results").iterdir()):
        found[f"benchmarks/results/{path.name}"] = f"measured/{path.name}"
    for path in sorted((ROOT / "examples").glob("*.py")):
        found[f"examples/{path.name}"] = f"examples/{path.stem}.md"
    return found


def literate(program: str) -> str:
    """Return a program as a page: its docstring and comments as text, what is between as code."""
    _, docstring, rest = program.split('"""', 2)
    title, _, text = docstring.strip().partition("\n")
    page, code = [f"# {title.rstrip('.')}", text], list[str]()

    def end_of_code() -> None:
        lines = "\n".join(code).strip("\n")
        if lines:
            page.append(f"```python\n{lines}\n```")
        code.clear()

    # A comment at the margin, with an empty line before it, begins a text.
    for part in rest.split("\n\n"):
        lines = part.strip("\n").split("\n")
        marked = [line for line in lines if re.match(r"#( |$)", line)]
        if marked and len(marked) == len(lines):
            end_of_code()
            page.append("\n".join(line[2:] for line in lines))
        else:
            code.append(part + "\n")
    end_of_code()
    return "\n\n".join(page)


def generated() -> dict[str, str]:
    """Return the pages that are made of other files, by their address."""
    made = {}
    for source, uri in sources().items():
        path = ROOT / source
        if path.suffix == ".py":
            made[uri] = literate(path.read_text())
        elif path.is_file() and uri != "index.md":
            made[uri] = path.read_text()
    return made


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the measurements and the examples in the navigation."""
    for entry in config.nav or []:
        for name, folder in {"Measured": "measured/", "Examples": "examples/"}.items():
            if name in entry:
                pages = (uri for uri in sources().values() if uri.startswith(folder))
                entry[name] += [uri for uri in pages if uri.endswith(".md")]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for uri, text in generated().items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Give wide pages their width, and have a notebook's links lead to pages, too."""
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["toc"]
    if not page.file.src_uri.endswith(".ipynb"):
        return html

    def link(match: re.Match[str]) -> str:
        file = files.get_file_from_path(match[1])
        if file is None:
            raise PluginError(f"{page.file.src_uri} has a link to {match[1]}, which is no page")
        return f'href="{file.url_relative_to(page.file)}{match[2] or ""}"'

    return re.sub(r'href="([\w/]+\.md)(#[^"]*)?"', link, html)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links of the repository into links of the site."""
    to_site = sources()
    here = page.file.src_uri
    from_elsewhere = [source for source, uri in to_site.items() if uri == here]
    source = from_elsewhere[0] if page.file.generated_by else f"docs/{here}"

    def link(match: re.Match[str]) -> str:
        before, target, anchor, after = match.groups()
        if re.match(r"\w+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        uri = to_site.get(path) or (path[5:] if path.startswith("docs/") else None)
        if uri is None:
            return match[0]  # which strict mode will not let pass
        relative = posixpath.relpath(uri, posixpath.dirname(here) or ".")
        return f"{before}{relative}{anchor or ''}{after}"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)
