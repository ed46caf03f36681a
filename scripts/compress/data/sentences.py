"""Labelled sentences: which ones count as the same, and what identifies a set of splits."""

import hashlib
import json

from compress.errors import UserError

Rows = list[tuple[str, int]]  # (sentence, class); -1 for no class


def normalized(sentence: str) -> str:
    """Sentences that differ only in case or spacing count as the same sentence."""
    return " ".join(sentence.casefold().split())


def bare(sentence: str) -> str:
    """The letters and digits of a sentence, to find copies that differ in punctuation; without any, the sentence."""
    return "".join(filter(str.isalnum, sentence.casefold())) or sentence


def fingerprint(splits: dict[str, Rows]) -> str:
    """SHA-256 of every split's name, sentences and classes, in order."""
    value = hashlib.sha256()
    for name in sorted(splits):
        value.update(json.dumps([name, [[text, int(label)] for text, label in splits[name]]]).encode())
    return value.hexdigest()


def check_disjoint(splits: dict[str, Rows]) -> None:
    """Raises UserError naming the first split that is empty, or the first sentence that is in two splits."""
    owner: dict[str, str] = {}
    for name, rows in splits.items():
        if not rows:
            raise UserError(f"the split {name!r} is empty")
        for text, _ in rows:
            first = owner.setdefault(normalized(text), name)
            if first != name:
                raise UserError(f"the same sentence is in the splits {first!r} and {name!r}: {text[:80]!r}")
