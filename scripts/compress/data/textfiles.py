"""Text files of rows: CSV, TSV and JSON Lines, read strictly.

A row with another number of fields than the header, a quote that swallows rows, or a line that is no JSON object is an
error that names the line, because a guess would silently cut or merge texts.
"""

import csv
import io
import json
import re
import sys
from pathlib import Path

from compress.errors import UserError

Cells = list[tuple[int, list]]  # for each row the number of the line that it starts in, and a value per column

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LINE_BREAK = "\r\n|\r|\n"
QUOTING = 'a text with commas or quotes is written "in ""such"" quotes"'

csv.field_size_limit(sys.maxsize)  # the default refuses texts of more than 131,072 characters


def read_cells(path: Path) -> tuple[list[str], Cells]:
    """The columns and rows of a file; raises UserError naming the file and the line."""
    if path.suffix.lower() not in READERS:
        raise UserError(
            f"{path}: unknown format, not {', '.join(READERS)}; a data set in Parquet is named by its folder"
        )
    columns, rows = READERS[path.suffix.lower()](path, _decoded(path))
    if not rows:
        raise UserError(f"{path}: no rows")
    return columns, rows


def check_quotes(path: Path, rows: Cells, label: int, names: set[str]) -> None:
    """Raises UserError if a line of a quoted text is itself a row with one of the class names in the label's column."""
    for number, (first, row) in enumerate(rows, 1):
        for column, field in enumerate(row):
            lines = re.split(LINE_BREAK, field)
            for i, line in enumerate(lines if len(lines) > 1 else ()):
                before = [""] * (column if i == 0 else 0)  # fields of this line that are not in the text
                after = [""] * (len(row) - column - 1 if i == len(lines) - 1 else 0)
                cells = before + line.split(",") + after
                if len(cells) == len(row) and cells[label].strip() in names:
                    raise UserError(
                        f"{path}: row {number} (line {first}): a quote opens a text that holds whole rows, such as "
                        f"{line[:60].strip()!r}; {QUOTING}"
                    )


def refuse_pointer(path: Path) -> None:
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{path}: a Git LFS pointer instead of the file; run: git lfs pull")


def _decoded(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark."""
    refuse_pointer(path)
    content = path.read_bytes()
    if b"\0" in content:
        raise UserError(f"{path}: UTF-16, or not a text; convert it to UTF-8: iconv -f UTF-16 -t UTF-8 {path.name}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line} is not UTF-8 ({error}); convert it, for example with iconv") from None


def _read_separated(path: Path, content: str) -> tuple[list[str], Cells]:
    """The columns and rows of a CSV file, or of a TSV file, in which a quote is a character like any other."""
    tabs = path.suffix.lower() == ".tsv"
    options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    reader = csv.reader(io.StringIO(content, newline=""), strict=True, **options)
    records, line = [], 1
    try:
        for record in reader:
            if record:  # not an empty line
                records.append((line, record))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}: line {line}: the quotes of this row are not in pairs ({error}); {QUOTING}") from None
    if not records:
        raise UserError(f"{path}: no header and no rows")
    (_, header), *rows = records
    separator = "tab" if tabs else "comma"
    for number, (line, row) in enumerate(rows, 1):
        if len(row) != len(header):
            reason = f"it ends in a {separator}; remove that" if len(row) == len(header) + 1 and not row[-1] else ""
            remedy = f"a text can't contain a {separator}" if tabs else QUOTING
            counts = f"row {number} (line {line}) has {len(row)} fields, the header has {len(header)}"
            raise UserError(f"{path}: {counts}; {reason or remedy}")
    return [name.strip() for name in header], rows


def _read_json_lines(path: Path, content: str) -> tuple[list[str], Cells]:
    """The keys of all objects, and a row for each object."""
    objects = []
    for number, line in enumerate(content.split("\n"), 1):
        if line.lstrip().startswith("["):
            remedy = f"a file that is one array becomes JSON Lines by: jq -c '.[]' {path.name}"
            raise UserError(f"{path}: line {number} is an array, not an object; {remedy}")
        if line.strip():
            try:
                value = json.loads(line, object_pairs_hook=_unique_keys)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is not JSON: {getattr(error, 'msg', error)}") from None
            if not isinstance(value, dict):
                raise UserError(f"{path}: line {number} is of type {type(value).__name__}, not an object")
            objects.append((number, value))
    columns = list(dict.fromkeys(key for _, value in objects for key in value))
    return columns, [(number, [value.get(key) for key in columns]) for number, value in objects]


def _unique_keys(pairs: list[tuple]) -> dict:
    keys = [key for key, _ in pairs]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"the key {twice[0]!r} is there twice")
    return dict(pairs)


READERS = {".csv": _read_separated, ".tsv": _read_separated, ".jsonl": _read_json_lines}
