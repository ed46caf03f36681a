"""Prepared data of a seed: the card (data.json) and the splits, as compress.data.prepare wrote them.

Many modules need the card alone, so the library that reads the splits is imported in load_splits.
"""

import json
from collections.abc import Mapping

from compress.config.profile import Profile
from compress.data.sentences import fingerprint
from compress.errors import UserError

FILE = "data.json"
OUT_OF_DOMAIN = ("amazon", "tweets", "nyt")  # test sets that the rated snippets have besides movies
MOST_HELD_OUT = 1000  # of the unlabelled texts


def load_card(profile: Profile, seed: int) -> dict:
    """fingerprint, labels, source, backbone, and for each split its sentences, class shares and lengths."""
    path = profile.data_folder(seed) / FILE
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent}: no data; run: {command(profile, seed)}") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); remove it and run: {command(profile, seed)}") from None


def command(profile: Profile, seed: int) -> str:
    return f"make data PROFILE={profile.name} SEEDS={seed}"


def load_splits(profile: Profile, seed: int):
    """The DatasetDict with the columns text and label; raises UserError if it does not match the card."""
    from datasets import load_from_disk  # noqa: PLC0415

    path = profile.data_folder(seed) / "splits"
    remedy = f"remove {path.parent} and run: {command(profile, seed)}"
    try:
        splits = load_from_disk(str(path))
        rows = {name: list(zip(split["text"], split["label"], strict=True)) for name, split in splits.items()}
    except (OSError, ValueError) as error:  # Arrow's own errors are ValueErrors
        raise UserError(f"{path}: damaged ({error}); {remedy}") from None
    if fingerprint(rows) != load_card(profile, seed)["fingerprint"]:
        raise UserError(f"{path}: the sentences are not those of {FILE}; {remedy}")
    return splits


def held_out(splits: Mapping) -> list[str]:
    """A tenth of the unlabelled texts, in random order already. No student learns from them.

    Champions are chosen by the agreement with the large teacher on these texts, too.
    """
    texts = splits["unlabelled"]["text"] if "unlabelled" in splits else []
    return list(texts[: min(MOST_HELD_OUT, len(texts) // 10)])
