"""A notebook per chapter, made from the chapter's source and executed from the committed results.

Reads report/chapters/*.md.j2 and results/ of the default profile; writes notebooks/<chapter>.ipynb. A fenced block of
python in the source is a code cell; one marked `python local` asks for what only this clone may have built, so that its
output is not kept. Cells are executed one after another in this process, as a kernel would, but without one.
Example: python scripts/notebooks.py hw1 hw2
"""

import argparse
import ast
import base64
import contextlib
import io
import os
import re

from compress.cli import main_guard
from compress.paths import DEFAULT_PROFILE, ROOT

NOTEBOOKS = ROOT / "notebooks"
CODE = re.compile(r"^```python( local)?\n(.*?)^```\n", re.M | re.S)


def made(name: str, text: str):
    """The notebook of a chapter's Markdown: fenced blocks of python are its code cells, nothing is executed yet."""
    import nbformat

    parts = CODE.split(text)  # text, mark, code, text, mark, code, ..., text
    cells = []
    for number, i in enumerate(range(0, len(parts), 3)):
        if parts[i].strip():
            cells.append(nbformat.v4.new_markdown_cell(parts[i].strip(), id=f"{name}-text-{number}"))
        if i + 2 < len(parts):
            cell = nbformat.v4.new_code_cell(parts[i + 2].strip(), id=f"{name}-code-{number}")
            cell.metadata.tags = ["local"] if parts[i + 1] else []
            cells.append(cell)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def execute(notebook) -> None:
    """Runs the code cells in notebooks/ and keeps what they print and the value of their last line."""
    import nbformat

    names = {"__name__": "__main__"}
    with contextlib.chdir(NOTEBOOKS):
        for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                value = run(cell.source, names, cell.id)
            if "local" in cell.metadata.tags:
                continue
            cell.execution_count = number
            if printed.getvalue():
                cell.outputs.append(nbformat.v4.new_output("stream", name="stdout", text=printed.getvalue()))
            if value is not None:
                shown = nbformat.v4.new_output("execute_result", data=seen(value), execution_count=number)
                cell.outputs.append(shown)


def run(source: str, names: dict, where: str):
    """Executes the statements; the value of the last one if it is an expression, else None."""
    body = ast.parse(source, where)
    last = body.body.pop() if body.body and isinstance(body.body[-1], ast.Expr) else None
    exec(compile(body, where, "exec"), names)
    return eval(compile(ast.Expression(last.value), where, "eval"), names) if last else None


def seen(value) -> dict[str, str]:
    """How Jupyter shows a value, by MIME type: a figure as PNG, a table as HTML, all else as text."""
    if hasattr(value, "savefig"):
        picture = io.BytesIO()
        value.savefig(picture, format="png", dpi=100, metadata={"Software": None})
        return {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": "<Figure>"}
    shown = {"text/plain": repr(value)}
    if hasattr(value, "_repr_html_"):
        shown["text/html"] = value._repr_html_()
    return shown


def notebooks(profile, results) -> dict:
    """Every chapter's notebook by its name, not yet executed."""
    import render

    about = render.context(profile, results)
    about |= {"notebook": True, "figure": lambda name, caption=None: redraw(name, caption or about["told"][name])}
    template = render.sources().get_template("notebook.md.j2")
    texts = {name.lower(): render.cite(template.render(about, page=name)) for name in about["chapters"]}
    return {name: made(name, text) for name, text in texts.items()}


def redraw(name: str, caption: str) -> str:
    """In place of a figure's link: a cell that draws it."""
    return f'{caption}\n\n```python\npictures["{name}"]\n```\n'


def main(args: argparse.Namespace) -> None:
    import matplotlib
    import nbformat
    from compress.config.profile import load_profile
    from compress.errors import UserError
    from compress.files import write_text
    from compress.results.reading import read_results

    matplotlib.use("agg")
    profile = load_profile(DEFAULT_PROFILE)
    found = notebooks(profile, read_results(profile))
    if unknown := set(args.chapter) - set(found):
        raise UserError(f"{', '.join(sorted(unknown))}: no such chapter; there are {', '.join(found)}")
    NOTEBOOKS.mkdir(exist_ok=True)
    for name in args.chapter or found:
        execute(found[name])
        path = NOTEBOOKS / f"{name}.ipynb"
        write_text(path, nbformat.writes(found[name]) + "\n")
        print(os.path.relpath(path, ROOT))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapter", nargs="*", help="hw1, hw2, ... (default: all)")
    main_guard(main, parser)
