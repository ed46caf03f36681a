"""The chapters' notebooks: cells from a page's Markdown, executed in this process."""

import ast
import base64
import contextlib
import io
import re
from collections.abc import Iterable
from pathlib import Path

import nbformat
from compress.config.profile import Profile
from compress.errors import UserError
from compress.files import write_text
from compress.paths import ROOT
from compress.report.pages import notebook_sources
from compress.results.reading import Results

NOTEBOOKS = ROOT / "notebooks"
CODE = re.compile(r"^```python( local)?\n(.*?)^```\n", re.M | re.S)
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def write_notebooks(profile: Profile, results: Results, chapters: Iterable[str]) -> list[Path]:
    """Executes and writes the notebooks of these chapters, or of all."""
    notebooks = chapter_notebooks(profile, results)
    if unknown := sorted(set(chapters) - set(notebooks)):
        raise UserError(f"{', '.join(unknown)}: no such chapter; there are {', '.join(notebooks)}")
    paths = []
    for name in chapters or notebooks:
        execute(notebooks[name])
        paths.append(NOTEBOOKS / f"{name}.ipynb")
        write_text(paths[-1], nbformat.writes(notebooks[name]) + "\n")
    return paths


def chapter_notebooks(profile: Profile, results: Results) -> dict:
    """Every chapter's notebook by its name, not yet executed."""
    return {name: to_cells(name, text) for name, text in notebook_sources(profile, results).items()}


def to_cells(name: str, text: str):
    """A notebook of a page's Markdown; its fenced blocks of python are the code cells."""
    parts = CODE.split(text)  # text, mark, code, text, mark, code, ..., text
    cells = []
    for number, i in enumerate(range(0, len(parts), 3)):
        if parts[i].strip():
            cells.append(nbformat.v4.new_markdown_cell(parts[i].strip(), id=f"{name}-text-{number}"))
        if i + 2 < len(parts):
            cell = nbformat.v4.new_code_cell(parts[i + 2].strip(), id=f"{name}-code-{number}")
            cell.metadata.tags = ["local"] if parts[i + 1] else []
            cells.append(cell)
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL, "language_info": {"name": "python"}})


def execute(notebook) -> None:
    """Runs the code cells in notebooks/ and keeps their printed text and the value of their last line."""
    NOTEBOOKS.mkdir(exist_ok=True)
    names = {"__name__": "__main__"}
    with contextlib.chdir(NOTEBOOKS):
        for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                value = run_cell(cell.source, names, cell.id)
            if "local" in cell.metadata.tags:
                continue
            cell.execution_count = number
            if printed.getvalue():
                cell.outputs.append(nbformat.v4.new_output("stream", name="stdout", text=printed.getvalue()))
            if value is not None:
                data = display_data(value)
                cell.outputs.append(nbformat.v4.new_output("execute_result", data=data, execution_count=number))


def run_cell(source: str, names: dict, where: str):
    """Executes the statements; the value of the last one if it is an expression, otherwise None."""
    body = ast.parse(source, where)
    last = body.body.pop() if body.body and isinstance(body.body[-1], ast.Expr) else None
    exec(compile(body, where, "exec"), names)
    return eval(compile(ast.Expression(last.value), where, "eval"), names) if last else None


def display_data(value) -> dict[str, str]:
    """What Jupyter shows of a value, by MIME type: a figure as PNG, a table as HTML, anything as text."""
    if hasattr(value, "savefig"):
        image = io.BytesIO()
        value.savefig(image, format="png", dpi=100, metadata={"Software": None})
        return {"image/png": base64.b64encode(image.getvalue()).decode(), "text/plain": "<Figure>"}
    data = {"text/plain": repr(value)}
    if hasattr(value, "_repr_html_"):
        data["text/html"] = value._repr_html_()
    return data
