"""Sentences become splits: train, validation and test, out-of-domain tests, and unlabelled text for distillation.

Every build imports this module, and few hold sentences out, so hold_out imports scikit-learn.
"""

import random

from compress.config.sources import Data
from compress.data.card import OUT_OF_DOMAIN
from compress.data.identity import identity
from compress.data.sentences import Rows, normalized
from compress.data.snippets import rated_snippets
from compress.data.tabular import SPLITS, read_tables
from compress.errors import UserError
from datasets import Dataset, DatasetDict


def hold_out(rows: Rows, size: int, seed: int) -> tuple[Rows, Rows]:
    """(rest, part of `size` rows), shuffled by the seed, classes in the same proportion in both."""
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    if len(rows) <= size:
        raise UserError(f"the profile holds out {size} sentences, but there are only {len(rows)}")
    try:
        rest, part = train_test_split(rows, test_size=size, random_state=seed, stratify=[label for _, label in rows])
    except ValueError as error:  # a class of one sentence, or fewer sentences than classes
        raise UserError(f"can't hold out {size} of {len(rows)} sentences with all classes in both: {error}") from None
    return rest, part


def dataset_dict(splits: dict[str, Rows]) -> DatasetDict:
    """The splits as Datasets with the columns text and label."""
    columns = {name: {"text": [t for t, _ in rows], "label": [y for _, y in rows]} for name, rows in splits.items()}
    return DatasetDict({name: Dataset.from_dict(value) for name, value in columns.items()})


def split_snippets(data: Data) -> tuple[dict[str, Rows], list[str]]:
    """(the splits of the rated snippets, the names of the classes)."""
    domains = rated_snippets(data)
    rest, test = hold_out(domains["movies"], data.test, data.split_seed)
    train, validation = hold_out(rest, data.validation, data.split_seed)
    splits = {"train": train[: data.max_train], "validation": validation, "test": test}
    unlabelled = []
    for domain in OUT_OF_DOMAIN:
        rest, splits[domain] = hold_out(domains[domain], data.domain_test, data.split_seed)
        unlabelled += rest
    random.Random(data.split_seed).shuffle(unlabelled)
    # -1 instead of the class, so that no training can use the labels of other domains.
    splits["unlabelled"] = [(text, -1) for text, _ in unlabelled][: data.max_train]
    return splits, ["negative", "positive"]


def split_tables(data: Data) -> tuple[dict[str, Rows], list[str]]:
    """(the splits of a data set or of local files, the names of the classes).

    Without a labelled test split, as in SST-2, the validation split becomes the test split. Missing splits are held out
    of train. Texts without a label become unlabelled text, whatever their split.
    """
    tables, labels = read_tables(data)
    if len(labels) < 2:
        raise UserError(f"{identity(data)}: a classifier needs two classes; it has {', '.join(labels) or 'none'}")
    if not any(label is not None for _, label in tables.get("test", ())) and "validation" in tables:
        tables["test"] = tables.pop("validation") + tables.get("test", [])
    number = {label: i for i, label in enumerate(labels)} | {None: -1}
    order = SPLITS[::-1]  # a sentence in two splits stays in the one that is never trained on
    seen: set[str] = set()
    splits: dict[str, Rows] = {name: [] for name in (*SPLITS, "unlabelled")}
    for name in sorted(tables, key=lambda name: (*order, name).index(name)):
        for text, label in tables[name]:
            part = splits.get("unlabelled" if label is None else name)  # None for a labelled split of another name
            if part is not None and normalized(text) not in seen:
                seen.add(normalized(text))
                part.append((text, number[label]))
    for name, size in (("test", data.test), ("validation", data.validation)):
        if not splits[name]:
            splits["train"], splits[name] = hold_out(splits["train"], size, data.split_seed)
    for name in ("train", "unlabelled"):
        random.Random(data.split_seed).shuffle(splits[name])
        splits[name] = splits[name][: data.max_train]
    if not splits["unlabelled"]:
        del splits["unlabelled"]
    for name in SPLITS:
        if absent := set(range(len(labels))) - {label for _, label in splits[name]}:
            raise UserError(f"{identity(data)}: no sentence of class {labels[min(absent)]!r} in the split {name!r}")
    return splits, labels
