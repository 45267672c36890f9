"""Build the site: README, notebooks, results and a reference, as pages that need no network.

    python notebooks/build_site.py [FOLDER]     writes site/index.html and what belongs to it

Sphinx makes the pages out of files that are there already: the notebooks as they were built, with their
outputs; the Markdown files; and the docstrings. Formulas become MathML, which browsers draw themselves.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import latex2mathml.converter
import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

from recipes import cards, shell

ROOT = Path(__file__).parent.parent
PAGES = (
    *("notebooks/index.md", "CONTRIBUTING.md", "DEPENDENCIES.md", "datasets/README.md", "models/README.md"),
    *("benchmarks/README.md", "recipes/federated_averaging/flower/README.md"),
)
"""Markdown files that become pages; the README becomes the first."""
SHARED = ("data", "training", "parties", "cards")
"""The modules that are documented besides the recipes."""
SECTIONS = ("Who sees what", "Paper", "Source", "Status", "Expect")
"""How a recipe's docstring is divided."""

KEYHOLE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
<circle cx="16" cy="16" r="16" fill="#1f77b4"/>
<circle cx="16" cy="12" r="5" fill="#fff"/><path d="M14 14h4l3 11h-10z" fill="#fff"/></svg>"""
SETTINGS = {
    "project": "Secure and Private AI Cookbook",
    "html_title": "Secure and Private AI Cookbook",
    "html_theme": "furo",
    "html_favicon": "keyhole.svg",
    "html_show_copyright": False,
    "html_show_sourcelink": False,
    "html_copy_source": False,
    "html_domain_indices": False,
    "language": "en",
    "exclude_patterns": ["site"],
    "extensions": ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "build_site"],
    "html_math_renderer": "mathml",
    "nb_execution_mode": "off",
    "myst_enable_extensions": ["dollarmath"],
    "myst_heading_anchors": 3,
    "autodoc_member_order": "bysource",
    "autodoc_typehints_format": "short",
    "autodoc_preserve_defaults": True,
    "default_role": "code",
    "napoleon_use_rtype": False,
    "pygments_style": "default",
}


def write_sources(folder: Path) -> None:
    """Everything that Sphinx reads, laid out as in the checkout, so that links between pages hold."""
    shutil.copytree(ROOT / "notebooks" / "pictures", folder / "notebooks" / "pictures")
    for page in PAGES:
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / page, folder / page)
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for path in notebooks:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            cell.metadata["mystnb"] = {"image": {"alt": cell.metadata.get("alt", "")}}
        nbformat.write(notebook, folder / "notebooks" / path.name)
    (folder / "keyhole.svg").write_text(KEYHOLE, "utf-8")
    recipes = [card["recipe"] for card in cards.read()]
    (folder / "reference").mkdir()
    for name in [*recipes, *SHARED]:
        (folder / "reference" / f"{name}.rst").write_text(reference(name), "utf-8")
    lists = {
        "Recipes": ["notebooks/index", *(f"notebooks/{path.stem}" for path in notebooks)],
        "Reference": [f"reference/{name}" for name in [*recipes, *SHARED]],
        "About": [page.removesuffix(".md") for page in PAGES if page != "notebooks/index.md"],
    }
    text = (ROOT / "README.md").read_text("utf-8")
    toctrees = [
        f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(entries) + "\n```"
        for caption, entries in lists.items()
    ]
    (folder / "index.md").write_text("\n\n".join([text, *toctrees]), "utf-8")


def reference(name: str) -> str:
    """The source of a module's page: all that it offers by name."""
    module = importlib.import_module(f"recipes.{name}")
    for public in getattr(module, "__all__", ()):
        setattr(module, public, getattr(module, public))  # some are imported only when they are asked for
    title = module.__name__
    whole = "   :imported-members:\n" if hasattr(module, "__path__") else ""  # of a package: its modules'
    return f"{title}\n{'=' * len(title)}\n\n.. automodule:: {title}\n   :members:\n{whole}"


def setup(app: Sphinx) -> None:
    """What Sphinx is taught here: MathML, and docstrings that are not written for it."""
    app.add_html_math_renderer(
        "mathml",
        (lambda page, node: mathml(page, node, "inline"), None),
        (lambda p, n: mathml(p, n, "block"), None),
    )
    plain: dict[
        str, list[str]
    ] = {}  # docstrings of attributes, in which napoleon would take `word: …` for a type

    def keep(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
        if what in ("attribute", "property"):
            plain[name] = list(lines)

    def bring_back(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
        lines[:] = plain.pop(name, lines)

    for priority, handler in ((100, restructure), (200, keep), (900, bring_back)):
        app.connect("autodoc-process-docstring", handler, priority=priority)


def mathml(page: Any, node: nodes.Node, display: str) -> None:
    """Write a formula as MathML."""
    page.body.append(latex2mathml.converter.convert(node.astext(), display=display))
    raise nodes.SkipNode


def restructure(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Make reStructuredText of a docstring: escape what would be markup, and lay out a module's."""
    text = "\n".join(lines)
    command = ""
    if what == "module":
        text, _, command = text.partition("\nCommand: ")
        text = re.sub(r"\n\n(?= {4})", "\n\n::\n\n", text)
    text = re.sub(r"(`[^`]*`)|([*|\\]|_\b)", lambda m: m[1] or "\\" + m[2], text)
    if what == "module":
        text = re.sub(rf"^({'|'.join(SECTIONS)}): *", r"\n:\1: ", text, flags=re.MULTILINE)
    if command:
        text += "\n\n::\n\n" + "\n".join(f"    {line.strip()}" for line in command.splitlines())
    lines[:] = text.splitlines()


def build(target: Path) -> int:
    """Write the site to a folder, in place of the one that is there; the exit status.

    Raises:
        ValueError: the folder holds something else.
    """
    if target.is_symlink() or (target.exists() and not (target / ".buildinfo").exists()):
        raise ValueError(f"{target} is there and is no site: name a new folder")
    with tempfile.TemporaryDirectory() as folder, docutils_namespace():
        write_sources(Path(folder))
        pages = f"{folder}/site/pages"
        how = {"confoverrides": SETTINGS, "status": None, "warning": sys.stderr}
        app = Sphinx(folder, None, pages, f"{folder}/site/trees", "html", **how)
        app.build()
        if app.statuscode == 0:
            if target.exists():
                shutil.rmtree(target)
            shutil.move(pages, target)
    print(f"wrote {target / 'index.html'}" if app.statuscode == 0 else "the site was not written")
    return app.statuscode


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "site")
    with shell.one_line_errors("build_site.py"):
        return build(parser.parse_args().folder)


if __name__ == "__main__":
    sys.exit(main())
