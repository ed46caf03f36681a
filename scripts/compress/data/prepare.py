"""Prepares the data and the backbone of a profile in build/<profile>/data/: splits, encoder and card.

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
from compress.data.identity import identity
from compress.data.partition import dataset_dict, split_snippets, split_tables
from compress.data.sentences import Rows, check_disjoint, fingerprint
from compress.errors import UserError
from compress.files import atomic_path, remove, write_json
from datasets import disable_progress_bars
from tokenizers import Tokenizer


def prepare(profile: Profile) -> dict:
    """Prepares everything and returns the card. Data that are already there are left alone, so Make sees no change."""
    disable_progress_bars()
    data = profile.data
    splits, labels, rows = (*split_snippets(data), {}) if data.package else split_tables(data)
    check_disjoint(splits)
    folder = profile.build / ".data.partial"
    remove(folder)
    folder.mkdir(parents=True)
    try:
        with atomic_path(folder / "backbone") as backbone:  # its files are for every user
            save_backbone(profile.backbone, backbone, len(labels), data.max_length)
        dataset_dict(splits).save_to_disk(str(folder / "splits"))
        tokenizer = tokenizer_facts(folder / "backbone")
        card = {
            "fingerprint": fingerprint(splits),
            "labels": labels,
            "source": identity(data),
            "backbone": identity(profile.backbone),
            "tokenizer": tokenizer,
            "splits": split_statistics(splits, folder / "backbone" / "tokenizer.json", tokenizer["unknown"]),
        }
        card |= {"rows": rows} if rows else {}
        write_json(folder / FILE, card)
        if not is_there(profile, card, folder / "backbone"):
            remove(profile.data_folder)
            os.replace(folder, profile.data_folder)
    finally:
        remove(folder)
    return card


def is_there(profile: Profile, card: dict, backbone: Path) -> bool:
    """Whether the profile's data folder has this card, undamaged splits, and the same backbone."""
    try:
        load_splits(profile)
        if load_card(profile) != card:
            return False
    except UserError:
        return False
    names = [path.name for path in backbone.iterdir()]
    return filecmp.cmpfiles(backbone, profile.backbone_folder, names, shallow=False)[1:] == ([], [])


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
