"""Tables of (text, class name) from local CSV, TSV or JSON-lines files and from data sets in the hub's format."""

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pandas
from compress.config.sources import Data
from compress.data.hub import download
from compress.errors import UserError
from compress.paths import ROOT
from datasets import load_dataset
from datasets.exceptions import DatasetsError

SPLITS = ("train", "validation", "test")
SUFFIXES = (".csv", ".tsv", ".jsonl")
ID_COLUMN = "id"  # optional; its values must be unique
Table = list[tuple[str, str | None]]  # (text, class name); None for a text without a label


def read_tables(data: Data) -> tuple[dict[str, Table], list[str]]:
    """The tables of a hub's data set or of a path by split, and the names of the classes in their order."""
    path = ROOT / data.path if data.path else None
    if path is None or (path.is_dir() and not any((path / f"train{suffix}").is_file() for suffix in SUFFIXES)):
        return _read_dataset(path or download(data.hub, "dataset"), data)
    if path.is_file():
        tables = {"train": read_table(path, data)}
    else:
        files = {split: [path / f"{split}{suffix}" for suffix in SUFFIXES] for split in SPLITS}
        tables = {s: read_table(file, data) for s, candidates in files.items() for file in candidates if file.is_file()}
    return tables, class_names(name for table in tables.values() for _, name in table)


def read_table(path: Path, data: Data) -> Table:
    """The rows of a file; raises UserError naming the file, and the bad column or row."""
    try:
        if path.suffix == ".jsonl":
            table = pandas.read_json(path, lines=True, dtype=False, encoding="utf-8")
        elif path.suffix in SUFFIXES:
            separator = "\t" if path.suffix == ".tsv" else ","
            table = pandas.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8")
        else:
            raise UserError(f"{path}: unknown format; the name must end in .csv, .tsv or .jsonl")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: {error}; convert it, for example with iconv") from None
    except ValueError as error:
        raise UserError(f"{path}: not a {path.suffix[1:]} file with a row of data: {error}") from None
    if table.empty:
        raise UserError(f"{path}: no rows")
    text, label = (table[name] for name in _columns(path, data, list(table.columns)))
    for values in (text, label):
        blank = values.isna() | (values.astype(str).str.strip() == "")
        if blank.any():
            raise UserError(f"{path}: row {blank.argmax() + 1} has an empty {values.name}")
    if ID_COLUMN in table and (repeated := table[ID_COLUMN].duplicated()).any():
        row = repeated.argmax()
        raise UserError(f"{path}: row {row + 1} repeats the {ID_COLUMN} {table[ID_COLUMN][row]!r}; make it unique")
    return list(zip(text.astype(str), label.astype(str).str.strip(), strict=True))


def class_names(labels: Iterable[str | None]) -> list[str]:
    """The distinct labels; whole numbers are sorted by value, everything else alphabetically."""
    distinct = {label for label in labels if label is not None}
    numbers = all(re.fullmatch(r"-?\d+", label) for label in distinct)
    return sorted(distinct, key=int if numbers else None)


def _read_dataset(folder: Path, data: Data) -> tuple[dict[str, Table], list[str]]:
    """All splits of a folder in the hub's format (such as Parquet); classes in the order of its ClassLabel."""
    where = data.hub or data.path
    with tempfile.TemporaryDirectory() as cache:  # for the library's Arrow copy, which is read once
        try:
            raw = load_dataset(str(folder), data.configuration, cache_dir=cache)
        except (DatasetsError, ValueError, FileNotFoundError, OSError) as error:
            raise UserError(f"{where}: not a readable data set: {error}") from None
        if "train" not in raw:
            raise UserError(f"{where}: no split train; it has {', '.join(raw)}")
        first = raw["train"]
        text, label = _columns(where, data, first.column_names)
        declared = getattr(first.features[label], "names", None)
        tables = {}
        for split, part in raw.items():
            texts, labels = part[text][:], part[label][:] if label in part.column_names else [None] * len(part)
            if declared:  # -1 stands for no label
                labels = [declared[i] if i is not None and i >= 0 else None for i in labels]
            tables[split] = [(t, y if y is None else str(y)) for t, y in zip(texts, labels, strict=True)]
    return tables, declared or class_names(name for table in tables.values() for _, name in table)


def _columns(where, data: Data, columns: list[str]) -> tuple[str, str]:
    """The names of the text and label columns; raises UserError if one is missing."""
    usual = "sentence" if "sentence" in columns and "text" not in columns else "text"
    names = (data.text_column or usual, data.label_column)
    for name in names:
        if name not in columns:
            listed = ", ".join(columns)
            raise UserError(f"{where}: no column {name!r}; it has {listed}; set text_column and label_column")
    return names
