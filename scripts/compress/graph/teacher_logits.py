"""Writes the logits that compress.methods.large_teacher reads."""

import json

import numpy as np
from compress.config.profile import Profile, logits_file
from compress.data.card import held_out, load_card, load_splits
from compress.engines.predictor import load, load_tokenizer, predict, token_ids
from compress.errors import UserError
from compress.files import digest, read_arrays, sha256_file, write_arrays
from compress.methods.transfer import PARTS, transfer_set
from compress.provenance import provenance
from compress.storage.artifact import read_artifact

BATCH = 32


def write_teacher_logits(profile: Profile, seed: int, device: str, threads: int) -> int:
    """Stores the logits of the profile's baseline for a seed's transfer set and held-out texts; returns their number.

    A file with the same logits is left alone, so that no student becomes stale.
    """
    folder = profile.variant_folder(profile.baseline, seed, device)
    artifact = read_artifact(folder)
    predictor, tokenizer = load(folder, device, threads), load_tokenizer(folder, artifact.max_length)
    splits, card = load_splits(profile, seed), load_card(profile, seed)
    arrays = {}
    parts = transfer_set(splits, seed, [part for part in PARTS if part == "augmented" or part in splits])
    for texts in filter(None, [*(texts for texts, _ in parts), held_out(splits)]):
        logits = predict(predictor, token_ids(tokenizer, texts), BATCH)
        arrays[digest(list(texts))] = logits.astype(np.float16)
    about = {
        "teacher": f"{profile.name}/{profile.baseline}",
        "artifact_sha256": sha256_file(folder / "artifact.json"),
        "data_fingerprint": card["fingerprint"],
        "command": f"make teacher PROFILE={profile.name} SEEDS={seed}",
        "provenance": provenance(seed, threads, device),
    }
    path = logits_file(profile.name, seed)
    if not is_same(path, arrays, about):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(path, arrays | {"about": np.array(json.dumps(about, sort_keys=True))})
    return sum(map(len, arrays.values()))


def is_same(path, arrays: dict, about: dict) -> bool:
    """Whether the file has these logits, of a teacher that learned from the same sentences."""
    try:
        old = read_arrays(path)
        fingerprint = json.loads(str(old.pop("about")))["data_fingerprint"]
    except (UserError, KeyError, ValueError):
        return False
    equal = old.keys() == arrays.keys() and all(np.array_equal(old[key], value) for key, value in arrays.items())
    return equal and fingerprint == about["data_fingerprint"]
