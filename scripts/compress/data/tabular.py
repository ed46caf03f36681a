"""Tables of (text, class name) from CSV, TSV and JSON-lines files and from data sets in the hub's format.

One reader for every such file, wherever it lies. It refuses what can be read in two ways instead of choosing one.
"""

import json
import re
import tempfile
from collections.abc import Iterable
from decimal import Decimal
from itertools import chain
from pathlib import Path

from compress.config.sources import Data
from compress.data.hub import download
from compress.data.identity import local_files, visible_files
from compress.data.textfiles import READERS, check_quotes, read_cells, refuse_pointer
from compress.errors import UserError
from compress.paths import ROOT
from datasets import load_dataset, load_dataset_builder

SPLITS = ("train", "validation", "test")
OTHER_NAMES = ("dev", "val", "valid", "eval")  # of splits elsewhere
TYPED = (".parquet", ".arrow")  # formats of the hub that are not text
ID_COLUMN = "id"  # optional; its values must be unique
MISSING = ("", "NA", "N/A", "#N/A", "<NA>", "NaN", "nan", "NULL", "null")
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", re.IGNORECASE)
Table = list[tuple[str, str | None]]  # (text, class name); None for a text without a label


def read_tables(data: Data) -> tuple[dict[str, Table], list[str]]:
    """The tables of a path or of a hub's data set by split, and the names of the classes in their order."""
    path = ROOT / data.path if data.path else download(data.hub, "dataset")
    if data.path:
        local_files(data)  # raises UserError if there are none
    declared = None
    if path.is_file():
        tables = {"train": read_table(path, data)}
    elif not data.configuration and (files := _split_files(path)):
        tables = {split: read_table(file, data) for split, file in files.items()}
    else:
        tables, declared = _read_dataset(path, data)
    if "train" not in tables:
        raise UserError(f"{path}: no split train; it has {', '.join(tables)}")
    if tables["train"] and all(NUMBER.fullmatch(text.strip()) for text, _ in tables["train"]):
        raise UserError(f"{path}: every text is a number; name the column of the texts by text_column")
    if declared:
        return tables, declared
    names = class_names(path, (label for table in tables.values() for _, label in table))
    tables = {split: [(text, names.get(label)) for text, label in table] for split, table in tables.items()}
    return tables, list(dict.fromkeys(names.values()))


def read_table(path: Path, data: Data) -> Table:
    """The rows of a file; raises UserError naming the file, and the bad column or row."""
    columns, rows = read_cells(path)
    names = _columns(path, data, columns)
    text, label = map(columns.index, names)
    table, owner = [], {}
    for number, (line, row) in enumerate(rows, 1):
        where = f"{path}: row {number} (line {line})"
        table.append((_cell(where, names[0], row[text]), _cell(where, names[1], row[label], int, float).strip()))
        if ID_COLUMN in columns:
            value = str(row[columns.index(ID_COLUMN)])
            if (first := owner.setdefault(value, number)) != number:
                raise UserError(f"{where} repeats the {ID_COLUMN} {value!r} of row {first}; make it unique")
    if path.suffix.lower() == ".csv":
        check_quotes(path, rows, label, {name for _, name in table})
    return table


def class_names(where: str | Path, labels: Iterable[str | None]) -> dict[str, str]:
    """The class of each label, in the classes' order: numbers by value, everything else alphabetically.

    The labels 2 and 2.0 are one class; raises UserError if others are the same number, such as 2 and 02.
    """
    distinct = sorted({label for label in labels if label is not None})
    if not all(NUMBER.fullmatch(label) for label in distinct):
        return {label: label for label in distinct}
    names, by_value = {}, {}
    for label in sorted(distinct, key=Decimal):
        names[label] = re.sub(r"\.0+$", "", label)
        if (other := by_value.setdefault(Decimal(label), names[label])) != names[label]:
            raise UserError(f"{where}: the labels {other!r} and {label!r} are the same number; write them alike")
    return names


def _split_files(folder: Path) -> dict[str, Path]:
    """The tabular files directly in a folder by split: one of any name, or train, validation and test."""
    files = [file for file in visible_files(folder) if file.parent == folder and file.suffix.lower() in READERS]
    found = {file.stem: file for file in files if file.stem in SPLITS}
    if len(files) == 1 and not found:
        found = {"train": files[0]}
    if files:
        _refuse_unread(folder, found.values())
    return found


def _refuse_unread(folder: Path, read: Iterable[Path]) -> None:
    """Raises UserError if the folder has a file of data that is not read, by its format or by a split's name."""
    known = {file.resolve() for file in read}
    files = [file for file in visible_files(folder) if file.resolve() not in known]
    if unread := [file for file in files if file.suffix.lower() in (*READERS, *TYPED) or _is_named_like_split(file)]:
        names = "one file, or one each called train, validation and test"
        raise UserError(f"{unread[0]}: is not read: a folder holds {names}; remove it, or set data.configuration")


def _is_named_like_split(file: Path) -> bool:
    """Whether a file of another format, such as test.json or dev.csv.gz, seems to hold a split; code does not."""
    return file.name.lower().split(".")[0] in (*SPLITS, *OTHER_NAMES) and file.suffix not in (".py", ".md")


def _read_dataset(folder: Path, data: Data) -> tuple[dict[str, Table], list[str] | None]:
    """All splits of a folder in the hub's format, and the names of a declared ClassLabel."""
    where = data.hub or data.path
    with tempfile.TemporaryDirectory() as cache:  # for the library's Arrow copy, which is read once
        try:
            found = load_dataset_builder(str(folder), data.configuration, cache_dir=cache).config.data_files or {}
            files = {str(split): list(map(Path, paths)) for split, paths in found.items()}
            read = [file for paths in files.values() for file in paths]
            if not data.configuration:
                _refuse_unread(folder, read)
            if any(file.suffix.lower() not in TYPED for file in read):
                tables = {split: [read_table(file, data) for file in paths] for split, paths in files.items()}
                return {split: [*chain.from_iterable(parts)] for split, parts in tables.items()}, None
            for file in read:
                refuse_pointer(file)
            raw = load_dataset(str(folder), data.configuration, cache_dir=cache)
        except UserError:
            raise
        except Exception as error:  # the library passes on those of its parsers
            reason = " ".join(str(error.__cause__ or error).split())
            raise UserError(f"{where}: not a readable data set: {reason}") from None
        first = next(iter(raw.values()))
        text, label = _columns(where, data, first.column_names)
        declared, tables = getattr(first.features[label], "names", None), {}
        for split, part in raw.items():
            labels = part[label][:] if label in part.column_names else [None] * len(part)
            if declared:  # -1 stands for no label
                if (most := max((i for i in labels if i is not None), default=0)) >= len(declared):
                    raise UserError(f"{where}: {split}: the label {most} has no name: {len(declared)} are declared")
                labels = [declared[i] if i is not None and i >= 0 else None for i in labels]
            tables[split] = []
            for number, (value, name) in enumerate(zip(part[text][:], labels, strict=True), 1):
                row = f"{where}: {split}: row {number}"
                own = _cell(row, text, value)
                tables[split].append((own, None if name is None else _cell(row, label, name, int, float).strip()))
    return tables, declared


def _columns(where, data: Data, columns: list[str]) -> tuple[str, str]:
    """The names of the text and label columns; raises UserError if one is missing, or if they are ambiguous."""
    usual = "sentence" if "sentence" in columns and "text" not in columns else "text"
    names = (data.text_column or usual, data.label_column)
    for name in names:
        if name not in columns:
            listed = ", ".join(columns)
            raise UserError(f"{where}: no column {name!r}; it has {listed}; set text_column and label_column")
    if names[0] == names[1]:
        raise UserError(f"{where}: {names[0]!r} is both text_column and label_column")
    for name in (*names, ID_COLUMN):
        if columns.count(name) > 1:
            raise UserError(f"{where}: {columns.count(name)} columns are called {name!r}; rename all but one")
    return names


def _cell(where: str, column: str, value, *types: type) -> str:
    """A value as text; raises UserError if it is missing, or neither a text nor of one of the types."""
    text = "" if value is None else json.dumps(value) if isinstance(value, bool) else str(value)
    if text.strip() in MISSING:
        kind = (
            f"the {column} {text.strip()!r}, which stands for a missing value" if text.strip() else f"an empty {column}"
        )
        raise UserError(f"{where} has {kind}; complete or remove the row")
    if not isinstance(value, (str, *types)):
        raise UserError(
            f"{where}: its {column} is of type {type(value).__name__}, not a text{' or a number' if types else ''}"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: its {column} is not valid Unicode: {error}") from None
    return text
