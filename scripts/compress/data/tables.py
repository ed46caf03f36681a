"""Text classification data and encoders that are not in a package: files at hand, and the Hugging Face hub.

Whatever the source, data become one table per split: rows of (text, class name), None for a text without a label.
"""

import os
import re
import tempfile
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

from compress.config.profile import Data, Source
from compress.errors import UserError
from compress.files import digest, sha256_file
from compress.paths import ROOT

SPLITS = ("train", "validation", "test")
SUFFIXES = (".csv", ".tsv", ".jsonl")
TIMEOUT_SECONDS = 10
ID_COLUMN = "id"  # need not be there; if it is, no value may be there twice
Table = list[tuple[str, str | None]]


def identity(source: Source) -> str:
    """A source to the byte: the pinned package, the hub's repository at a commit, or a path and a hash of its files."""
    if source.package:
        return source.package.requirement
    if source.hub:
        return source.hub
    path = ROOT / source.path
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise UserError(f"{path}: no such file, and no folder with files")
    return f"{source.path}, SHA-256 {digest([[str(file.relative_to(path)), sha256_file(file)] for file in files])}"


def read_tables(data: Data) -> tuple[dict[str, Table], list[str]]:
    """The tables of a hub's data set or of a path by split, and the names of the classes in their order."""
    path = ROOT / data.path if data.path else None
    if path is None or (path.is_dir() and not any((path / f"train{suffix}").is_file() for suffix in SUFFIXES)):
        return _read_dataset(path or download(data.hub, "dataset"), data)
    if path.is_file():
        tables = {"train": read_table(path, data)}
    else:
        found = {split: [path / f"{split}{suffix}" for suffix in SUFFIXES] for split in SPLITS}
        tables = {s: read_table(file, data) for s, files in found.items() for file in files if file.is_file()}
    return tables, class_names(name for table in tables.values() for _, name in table)


def read_table(path: Path, data: Data) -> Table:
    """The rows of a CSV, TSV or JSON-lines file; raises UserError naming the file, and the column or row at fault."""
    import pandas

    try:
        if path.suffix == ".jsonl":
            table = pandas.read_json(path, lines=True, dtype=False, encoding="utf-8")
        elif path.suffix in SUFFIXES:
            separator = "\t" if path.suffix == ".tsv" else ","
            table = pandas.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8")
        else:
            raise UserError(f"{path}: name it .csv, .tsv or .jsonl, according to what it is")
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
    if ID_COLUMN in table and (twice := table[ID_COLUMN].duplicated()).any():
        raise UserError(f"{path}: row {twice.argmax() + 1}: the {ID_COLUMN} {table[ID_COLUMN][twice.argmax()]!r} again")
    return list(zip(text.astype(str), label.astype(str).str.strip(), strict=True))


def class_names(labels: Iterable[str | None]) -> list[str]:
    """The distinct labels: whole numbers by value, anything else by the alphabet."""
    distinct = {label for label in labels if label is not None}
    numbers = all(re.fullmatch(r"-?\d+", label) for label in distinct)
    return sorted(distinct, key=int if numbers else None)


def download(repository: str, kind: str, patterns: list[str] | None = None) -> Path:
    """The folder of a hub's repository owner/name@commit, from the hub's own cache if it is there.

    kind: model or dataset. Raises UserError saying what is wrong and how to supply the files by hand.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if os.isatty(2) else "1")
    import requests
    from huggingface_hub import HfApi, snapshot_download

    name, commit = repository.split("@")
    about = {"repo_type": kind, "revision": commit}
    with told(name, commit, kind):
        try:  # asked first, since snapshot_download waits without end for a hub that does not answer
            HfApi().repo_info(name, **about, timeout=TIMEOUT_SECONDS)
            reached = True
        except (ConnectionError, requests.ConnectionError, requests.Timeout):  # or HF_HUB_OFFLINE is set
            reached = False
        return Path(snapshot_download(name, **about, allow_patterns=patterns, local_files_only=not reached))


@contextmanager
def told(name: str, commit: str, kind: str):
    """Turns what goes wrong on the way to a repository into a UserError."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub
    from requests import RequestException

    reasons = {  # the first that fits
        hub.GatedRepoError: "it is gated: ask for access on its page, then log in with: hf auth login",
        hub.RevisionNotFoundError: f"it has no revision {commit}",
        hub.RepositoryNotFoundError: "no such repository, or it is private: check the name, or log in: hf auth login",
        hub.LocalEntryNotFoundError: f"the hub can't be reached, and {constants.HF_HUB_CACHE} does not hold it",
        RequestException: "the hub can't be reached",
        hub.HfHubHTTPError: "the hub refuses it",
    }
    try:
        yield
    except tuple(reasons) as error:
        reason = next(text for kind_of, text in reasons.items() if isinstance(error, kind_of))
        option = "--repo-type dataset " if kind == "dataset" else ""
        raise UserError(
            f"{kind} {name}: {reason}\nWithout a network: run, where there is one,\n"
            f"  hf download {option}{name} --revision {commit}\nand copy the cache ({constants.HF_HUB_CACHE}), or its "
            f"folder, which the profile then names by the key path in place of hub."
        ) from None


def _read_dataset(folder: Path, data: Data) -> tuple[dict[str, Table], list[str]]:
    """A folder in the hub's format (Parquet and the like): every split, the classes in the order of its ClassLabel."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    where = data.hub or data.path
    with tempfile.TemporaryDirectory() as cache:  # its Arrow copy is read once
        try:
            raw = load_dataset(str(folder), data.configuration, cache_dir=cache)
        except (DatasetsError, ValueError, FileNotFoundError, OSError) as error:
            raise UserError(f"{where}: no data set that can be read: {error}") from None
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
    """The names of the text's and the label's column; raises UserError for one that is not there."""
    usual = "sentence" if "sentence" in columns and "text" not in columns else "text"
    names = (data.text_column or usual, data.label_column)
    for name in names:
        if name not in columns:
            had = ", ".join(columns)
            raise UserError(f"{where}: no column {name!r}; it has {had}; see text_column and label_column")
    return names
