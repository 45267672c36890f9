"""Build the notebooks: run each `NN_name.py` and write `NN_name.ipynb` beside it.

The `.py` file (percent format) is the one that people edit. A second build gives the same bytes:
cells are numbered, nothing is timed, and what goes to stderr is shown here and not in the notebook.
A cell's `alt` says what its picture shows; the picture of the cell tagged `cover` is written to
`pictures/NN_name.png`, for the README.

    python notebooks/build.py [NAME ...]           build all, or those whose name begins so
    python notebooks/build.py --data embedded      on the stand-ins instead of the real data
    python notebooks/build.py --check              fail if an .ipynb is not what its .py says
    python notebooks/build.py --check --rebuild    … or if a new build gives other bytes
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

from recipes.files import written_whole

FOLDER = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def read(source: Path) -> nbformat.NotebookNode:
    """The cells of a percent-format file, numbered, without outputs."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number:02}"
        kept = {name: cell.metadata[name] for name in ("tags", "alt") if name in cell.metadata}
        cell.metadata = nbformat.from_dict({"tags": [], **kept})
    return notebook


def execute(notebook: nbformat.NotebookNode, data: str, **others: int) -> None:
    """Run a notebook from top to bottom, with `DATA` and other names of its cell tagged `parameters` set.

    Raises:
        CellExecutionError: a cell failed.
        ValueError: the cell has no such name.
    """
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.tags]
    source = parameters.source
    for name, value in {"DATA": data, **others}.items():
        if f"\n{name} = " not in f"\n{source}":
            raise ValueError(f"the notebook has no parameter {name}")
        parameters.source += f"\n{name} = {value!r}"
    os.environ["TQDM_DISABLE"] = "1"  # progress bars are for people
    client = NotebookClient(
        notebook,
        timeout=1800,
        record_timing=False,
        resources={"metadata": {"path": str(FOLDER)}},
        config=Config(KernelManager={"transport_encryption": "required"}),
    )
    client.execute()
    parameters.source = source
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = settled(cell.outputs)
            for picture in pictures(cell):
                picture.metadata["image/png"] = {"alt": cell.metadata.get("alt", "")}
    notebook.metadata = nbformat.from_dict(METADATA)  # the kernel has added its version


def settled(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """A cell's outputs without stderr, which is shown here, and with what was printed in one piece.

    A kernel sends what is printed in as many pieces as its clock decides.
    """
    kept: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.get("name") == "stderr":
            print(output.text, end="", file=sys.stderr)
        elif output.get("name") == "stdout" and kept and kept[-1].get("name") == "stdout":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def pictures(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The outputs of a cell that are pictures."""
    return [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]


def cover(notebook: nbformat.NotebookNode) -> bytes:
    """The picture of the notebook's one cell tagged `cover`, a PNG.

    Raises:
        ValueError: there is no such cell, or it has no picture.
    """
    found = [
        picture for cell in notebook.cells if "cover" in cell.metadata.tags for picture in pictures(cell)
    ]
    if len(found) != 1:
        raise ValueError("one cell must be tagged cover, and draw one picture")
    return base64.b64decode(found[0].data["image/png"])


def cover_of(source: Path) -> Path:
    """Where a notebook's cover is written."""
    return source.parent / "pictures" / f"{source.stem}.png"


def is_stale(source: Path) -> bool:
    """Whether the notebook beside `source`, or its cover, is missing or was edited, or lacks its outputs."""
    path = source.with_suffix(".ipynb")
    if not (path.exists() and cover_of(source).exists()):
        return True
    built, wanted = nbformat.read(path, as_version=4), read(source)
    if any(cell.cell_type == "code" and cell.execution_count is None for cell in built.cells):
        return True
    with contextlib.suppress(ValueError):
        if cover(built) != cover_of(source).read_bytes():
            return True
    for cell in built.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return nbformat.writes(built) != nbformat.writes(wanted)


def build(source: Path, data: str) -> nbformat.NotebookNode | None:
    """The executed notebook, or None and a message if it fails."""
    notebook = read(source)
    try:
        execute(notebook, data)
        cover(notebook)
    except ValueError as error:
        print(f"{source.name}: {error}; nothing was written", file=sys.stderr)
        return None
    except CellExecutionError as error:
        if error.ename == "DatasetUnavailable":
            error = f"{error.evalue} For a notebook of stand-ins say DATA=embedded."
        print(f"{source.name} failed, nothing was written: {error}", file=sys.stderr)
        return None
    return notebook


def text_of(notebook: nbformat.NotebookNode | None) -> str | None:
    """What is written of a notebook."""
    return notebook and nbformat.writes(notebook) + "\n"


def check(sources: list[Path], data: str, rebuild: bool) -> int:
    """Say which notebooks are stale; the exit status."""
    stale = [source for source in sources if is_stale(source)]
    if rebuild:
        stale += [s for s in sources if s not in stale and text_of(build(s, data)) != committed(s)]
    names = ", ".join(source.with_suffix(".ipynb").name for source in stale)
    print(f"stale, run `make notebooks`: {names}" if stale else "all notebooks are fresh")
    return 1 if stale else 0


def committed(source: Path) -> str:
    """The notebook beside `source`."""
    return source.with_suffix(".ipynb").read_text("utf-8")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.error = lambda message: parser.exit(2, f"build.py: {message}\n")  # one line, no usage
    parser.add_argument("names", nargs="*", metavar="NAME", help="only what begins so")
    parser.add_argument("--data", choices=["real", "embedded", "auto"], default="real")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if one is stale")
    parser.add_argument("--rebuild", action="store_true", help="with --check: run them and compare")
    options = parser.parse_args()
    if options.rebuild and not options.check:
        parser.error("--rebuild goes with --check; to build and write, leave it out")
    sources = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
    chosen = [s for s in sources if not options.names or s.name.startswith(tuple(options.names))]
    if not chosen:
        parser.error(f"no notebook begins with {' or '.join(options.names)}")
    if options.check:
        return check(chosen, options.data, options.rebuild)
    for source in chosen:
        print(f"building {source.name}", flush=True)
        notebook = build(source, options.data)
        if notebook is None:
            return 1
        cover_of(source).parent.mkdir(exist_ok=True)
        with written_whole(cover_of(source)) as temporary:
            temporary.write_bytes(cover(notebook))
        with written_whole(source.with_suffix(".ipynb")) as temporary:
            temporary.write_text(text_of(notebook), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
