"""Sentences become splits: train, validation and test, out-of-domain tests, and unlabelled text for distillation.

Data without a test split are shuffled once, and seed k tests on block k, so that the test sets of different seeds share
no sentence. Validation and training sentences are drawn from the rest by the seed. What comes with a test split of its
own keeps it for every seed, and so do the out-of-domain tests. These are whole reviews and articles, so that nothing is
learned from other sentences of a review that is tested.

Every build imports this module, and few hold sentences out, so hold_out imports scikit-learn.
"""

import random
from collections import Counter, defaultdict
from itertools import groupby

from compress.config.sources import Data
from compress.data.card import OUT_OF_DOMAIN
from compress.data.sentences import Rows, bare, normalized
from compress.data.snippets import Snippet, rated_snippets
from compress.data.tabular import SPLITS, Table, read_tables
from compress.errors import UserError
from datasets import Dataset, DatasetDict


def check_enough(rows: Rows, size: int) -> None:
    """Raises UserError unless a row is left when `size` rows are held out."""
    if len(rows) <= size:
        raise UserError(f"the profile holds out {size} sentences, but there are only {len(rows)}")


def hold_out(rows: Rows, size: int, seed: int) -> tuple[Rows, Rows]:
    """(rest, part of `size` rows), shuffled by the seed, classes in the same proportion in both."""
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    check_enough(rows, size)
    try:
        rest, part = train_test_split(rows, test_size=size, random_state=seed, stratify=[label for _, label in rows])
    except ValueError as error:  # a class of one sentence, or fewer sentences than classes
        raise UserError(f"can't hold out {size} of {len(rows)} sentences with all classes in both: {error}") from None
    return rest, part


def hold_out_block(rows: Rows, size: int, block: int, shuffle_seed: int) -> tuple[Rows, Rows]:
    """(rest, block number `block` of the shuffled rows, of `size` rows).

    The blocks have no row in common, and the classes are in the same proportion in all. Raises UserError for a block
    that the rows don't have.
    """
    check_enough(rows, size)
    if block >= (blocks := len(rows) // size):
        choice = f"seeds from 0 to {blocks - 1}" if blocks > 1 else "seed 0 alone"
        raise UserError(
            f"seed {block} has no test sentences: {len(rows)} are {blocks} times {size}; choose {choice}, or lower "
            "data.test in the profile"
        )
    shuffled = shuffle_evenly(rows, shuffle_seed)
    start = block * size
    return shuffled[:start] + shuffled[start + size :], shuffled[start : start + size]


def shuffle_evenly(rows: Rows, seed: int) -> Rows:
    """The rows in random order, but with the classes spread evenly: every run of rows has them in proportion."""
    shuffled = random.Random(seed).sample(rows, len(rows))
    total = Counter(label for _, label in rows)
    met: Counter[int] = Counter()
    places = []
    for text, label in shuffled:
        met[label] += 1
        places.append(((met[label] - 0.5) / total[label], text, label))
    return [(text, label) for _, text, label in sorted(places)]


def hold_out_documents(snippets: list[Snippet], size: int, seed: int) -> tuple[Rows, Rows]:
    """(rest, part): the part has all sentences of documents drawn by the seed, document after document.

    Documents are drawn until the part has at least `size` sentences.
    """
    check_enough(rows_of(snippets), size)
    documents = defaultdict(list)
    for text, label, document in snippets:
        documents[document].append((text, label))
    part: Rows = []
    for name in random.Random(seed).sample(list(documents), len(documents)):
        if len(part) >= size:
            break
        part += documents.pop(name)
    return [row for rows in documents.values() for row in rows], part


def rows_of(snippets: list[Snippet]) -> Rows:
    return [(text, label) for text, label, _ in snippets]


def dataset_dict(splits: dict[str, Rows]) -> DatasetDict:
    """The splits as Datasets with the columns text and label."""
    columns = {name: {"text": [t for t, _ in rows], "label": [y for _, y in rows]} for name, rows in splits.items()}
    return DatasetDict({name: Dataset.from_dict(value) for name, value in columns.items()})


def hold_out_tests(data: Data, domains: dict[str, list[Snippet]], seed: int) -> dict[str, tuple[Rows, Rows]]:
    """(rest, test sentences) of every domain for a seed; the service's classifiers learn from the same rest.

    The rest is without copies of test sentences that differ in punctuation.
    """
    parts = {"movies": hold_out_block(rows_of(domains["movies"]), data.test, seed, data.split_seed)}
    for domain in OUT_OF_DOMAIN:
        parts[domain] = hold_out_documents(domains[domain], data.domain_test, data.split_seed)
    tested = {bare(text) for _, test in parts.values() for text, _ in test}
    return {
        domain: ([row for row in rest if bare(row[0]) not in tested], test) for domain, (rest, test) in parts.items()
    }


def document_sizes(snippets: list[Snippet], test: Rows) -> list[int]:
    """The number of test sentences in each document, in the order of the test sentences."""
    document = {text: document for text, _, document in snippets}
    return [len(list(group)) for _, group in groupby(test, lambda row: document[row[0]])]


def split_snippets(data: Data, seed: int) -> tuple[dict[str, Rows], list[str], dict]:
    """(a seed's splits of the rated snippets, the names of the classes, facts about the test sentences).

    The facts: how many test sentences each review and article has, and how many of movies were in older splits. The
    unlabelled text and the out-of-domain tests are the same for every seed.
    """
    domains = rated_snippets(data)
    tests = hold_out_tests(data, domains, seed)
    rest, test = tests["movies"]
    train, validation = hold_out(rest, data.validation, seed)
    splits = {"train": train[: data.max_train], "validation": validation, "test": test}
    unlabelled = []
    for domain in OUT_OF_DOMAIN:
        rest, splits[domain] = tests[domain]
        unlabelled += rest
    random.Random(data.split_seed).shuffle(unlabelled)
    # -1 instead of the class, so that no training can use the labels of other domains.
    splits["unlabelled"] = [(text, -1) for text, _ in unlabelled][: data.max_train]
    sizes = {name: document_sizes(domains[name], splits[name]) for name in OUT_OF_DOMAIN}
    about: dict = {"documents": {name: of_name for name, of_name in sizes.items() if max(of_name) > 1}}
    if data.older_split_seeds:
        about["test_sentences_in_older_splits"] = overlap_with_older(rows_of(domains["movies"]), test, data)
    return splits, ["negative", "positive"], about


def overlap_with_older(rows: Rows, test: Rows, data: Data) -> dict[str, dict[str, int]]:
    """How many test sentences were in each part of the older splits that settings were chosen on, by their seed."""
    counts = {}
    for seed in data.older_split_seeds:
        rest, older_test = hold_out(rows, data.test, seed)
        train, validation = hold_out(rest, data.validation, seed)
        parts = {"train": train, "validation": validation, "test": older_test}
        counts[str(seed)] = {name: len(set(test) & set(part)) for name, part in parts.items()}
    return counts


def split_tables(data: Data, seed: int) -> tuple[dict[str, Rows], list[str], dict]:
    """(a seed's splits of a data set or of local files, the names of the classes, what became of the rows).

    Without a labelled test split, as in SST-2, the validation split becomes the test split. Missing splits are held out
    of train. Texts without a label become unlabelled text, whatever their split.
    """
    tables, labels = read_tables(data)
    source = data.hub or data.path
    if len(labels) < 2:
        raise UserError(f"{source}: a classifier needs two classes; it has {', '.join(labels) or 'none'}")
    read = {name: len(table) for name, table in tables.items()}
    if not any(label is not None for _, label in tables.get("test", ())) and "validation" in tables:
        tables["test"] = tables.pop("validation") + tables.get("test", [])
    splits, dropped, contradicting = assign_texts(tables, labels)
    if not splits["train"]:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in dropped.items())
        raise UserError(
            f"{source}: no row is left for train; dropped: {reasons or 'none'}; check label_column and the splits"
        )
    held_out = {
        "test": lambda rows: hold_out_block(rows, data.test, seed, data.split_seed),
        "validation": lambda rows: hold_out(rows, data.validation, seed),
    }
    for name, hold in held_out.items():
        if not splits[name]:
            counts = Counter(label for _, label in splits["train"])
            if counts[rare := min(range(len(labels)), key=counts.__getitem__)] == 1:
                raise UserError(f"{source}: class {labels[rare]!r} has one text left for train and {name}; add texts")
            splits["train"], splits[name] = hold(splits["train"])
    for name in ("train", "unlabelled"):
        random.Random(seed).shuffle(splits[name])
        kept = splits[name][: data.max_train]
        dropped["beyond max_train"] += len(splits[name]) - len(kept)
        splits[name] = kept
    if not splits["unlabelled"]:
        del splits["unlabelled"]
    for name in SPLITS:
        if absent := set(range(len(labels))) - {label for _, label in splits[name]}:
            missing = f"no sentence of class {labels[min(absent)]!r} in the split {name!r}"
            raise UserError(f"{source}: {missing}; every split needs every class")
    used = [row for rows in splits.values() for row in rows]
    counts = Counter(label for _, label in used)
    about = {"read": read, "used": len(used), "dropped": dict(+dropped)}
    about["classes"] = {name: counts[i] for i, name in enumerate(labels)}
    breaks = sum("\n" in text or "\r" in text for text, _ in used)
    about["texts"] = {"with contradicting labels": contradicting, "with line breaks": breaks}
    return splits, labels, {"rows": about}


def assign_texts(tables: dict[str, Table], labels: list[str]) -> tuple[dict[str, Rows], Counter, int]:
    """(each text once in its split, number of dropped rows by reason, number of texts with several labels).

    A text in two splits stays in the one that is never trained on, with the label that it has there; a text with and
    without a label stays where it has one. A text with several labels in one split is dropped from it, because none of
    them is known to be right.
    """
    number = {label: i for i, label in enumerate(labels)} | {None: -1}
    splits: dict[str, Rows] = {name: [] for name in (*SPLITS, "unlabelled")}
    owner: dict[str, str] = {}
    dropped: Counter[str] = Counter()
    everywhere: dict[str, set] = defaultdict(set)
    order = sorted(tables, key=lambda name: (*SPLITS[::-1], name).index(name))
    labelled = [(name, [row for row in tables[name] if row[1] is not None]) for name in order]
    unlabelled = [(name, [row for row in tables[name] if row[1] is None]) for name in order]
    for name, rows in labelled + unlabelled:
        here: dict[str, set] = defaultdict(set)
        for text, label in rows:
            here[normalized(text)] |= {label} - {None}
        for text, label in rows:
            key, target = normalized(text), "unlabelled" if label is None else name
            everywhere[key] |= here[key]
            if target not in splits:
                dropped["in a split that is not read"] += 1
            elif key in owner:
                dropped["duplicates" if owner[key] == target else f"also in {owner[key]}"] += 1
            elif len(here[key]) > 1:
                dropped["with contradicting labels in one split"] += 1
            else:
                owner[key] = target
                splits[target].append((text, number[label]))
    return splits, dropped, sum(len(found) > 1 for found in everywhere.values())
