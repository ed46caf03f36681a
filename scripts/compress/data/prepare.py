"""Prepares the data of a profile in build/<profile>/data/: the encoder, and the splits and the card of each seed.

The sources are the rated snippets in a package, a data set of the Hugging Face hub, or local files. All become one
DatasetDict with the columns text and label: train, validation, test; out-of-domain tests (amazon, tweets, nyt) and
unlabelled text for distillation where the source has them.
"""

import filecmp
import os
from pathlib import Path

from compress.config.profile import Profile
from compress.data.backbone import save_backbone, tokenizer_facts
from compress.data.card import FILE, load_card, load_splits
from compress.data.identity import identity, visible_files
from compress.data.partition import dataset_dict, split_snippets, split_tables
from compress.data.sentences import Rows, check_disjoint, fingerprint
from compress.errors import UserError
from compress.files import atomic_path, digest, remove, sha256_file, write_json
from datasets import disable_progress_bars
from tokenizers import Tokenizer


def prepare(profile: Profile, seeds: list[int]) -> dict[int, dict]:
    """Prepares everything and returns the card of every seed.

    Files that are already there are left alone, so that Make sees no change.
    """
    disable_progress_bars()
    split = split_snippets if profile.data.package else split_tables
    parts = {seed: split(profile.data, seed) for seed in seeds}
    labels = next(iter(parts.values()))[1]
    folder = profile.build / ".data.partial"
    remove(folder)
    folder.mkdir(parents=True)
    try:
        common = {"labels": labels, "source": identity(profile.data)}
        for key, encoder in profile.encoders.items():
            with atomic_path(folder / key) as new:  # its files are for every user
                save_backbone(encoder, new, len(labels), profile.longest_input)
            hashes = {path.name: sha256_file(path) for path in visible_files(folder / key)}
            common |= {key: identity(encoder), f"{key}_files": digest(hashes)}
            if not is_same_folder(folder / key, profile.encoder_folder(key)):
                move(folder / key, profile.encoder_folder(key))
        common["tokenizer"] = tokenizer_facts(profile.backbone_folder)
        cards = {}
        for seed, (splits, _, about) in parts.items():
            cards[seed] = save_splits(folder / f"seed{seed}", splits, profile.backbone_folder, common | about)
            if not is_there(profile, seed, cards[seed]):
                move(folder / f"seed{seed}", profile.data_folder(seed))
    finally:
        remove(folder)
    return cards


def save_splits(folder: Path, splits: dict[str, Rows], backbone: Path, about: dict) -> dict:
    """Writes the splits and their card, which it returns."""
    check_disjoint(splits)
    dataset_dict(splits).save_to_disk(str(folder / "splits"))
    statistics = split_statistics(splits, backbone / "tokenizer.json", about["tokenizer"]["unknown"])
    card = {"fingerprint": fingerprint(splits), "splits": statistics} | about
    write_json(folder / FILE, card)
    return card


def move(source: Path, target: Path) -> None:
    remove(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)


def is_same_folder(source: Path, target: Path) -> bool:
    names = [path.name for path in source.iterdir()]
    return target.exists() and filecmp.cmpfiles(source, target, names, shallow=False)[1:] == ([], [])


def is_there(profile: Profile, seed: int, card: dict) -> bool:
    """Whether the seed's folder has this card and undamaged splits."""
    try:
        load_splits(profile, seed)
        return load_card(profile, seed) == card
    except UserError:
        return False


def split_statistics(splits: dict[str, Rows], tokenizer_file: Path, unknown: str | None) -> dict[str, dict]:
    """Per split: sentences, share of each class, length in word pieces (special ones counted), share of unknown."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    unknown_id = tokenizer.token_to_id(unknown or "")
    card = {}
    for name, rows in splits.items():
        encodings = tokenizer.encode_batch([text for text, _ in rows])
        lengths = sorted(map(len, encodings))
        classes = [label for _, label in rows]
        card[name] = {
            "sentences": len(rows),
            "class_share": {str(c): round(classes.count(c) / len(classes), 4) for c in sorted(set(classes))},
            "length_mean": round(sum(lengths) / len(lengths), 2),
            "length_median": lengths[len(lengths) // 2],
            "length_max": lengths[-1],
            "unknown_share": round(sum(encoding.ids.count(unknown_id) for encoding in encodings) / sum(lengths), 4),
        }
    return card
