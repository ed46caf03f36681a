"""The logits of a large teacher, stored once so that students can learn from it without training it.

results/<teacher's profile>/logits/seed<k>.npz: for each part of the transfer set of a seed the logits as half floats
[texts, classes], under the hash of the part's texts; "about" says what made them.
"""

import json
from collections.abc import Sequence

import numpy as np
from compress.config.profile import Profile
from compress.data.card import load_card, load_splits
from compress.engines.predictor import load, load_tokenizer, predict, token_ids
from compress.errors import Skip, UserError
from compress.files import digest, read_arrays, sha256_file, write_arrays
from compress.methods.made import Context
from compress.methods.transfer import PARTS, transfer_set
from compress.paths import ROOT
from compress.provenance import provenance
from compress.storage.artifact import read_artifact

BATCH = 32


def large_teacher_logits(context: Context, texts: Sequence[str]) -> np.ndarray:
    """The large teacher's logits float32 [texts, classes] of one part of the seed's transfer set.

    Raises Skip if nobody made them for this seed, UserError if they are of other texts.
    """
    path = context.profile.teacher_file(context.seed)
    again = f"make teacher PROFILE={context.profile.teacher} SEEDS={context.seed}"
    if not path.exists():
        raise Skip(f"{path.relative_to(ROOT)}: no logits of the large teacher for this seed; they are made by: {again}")
    arrays = read_arrays(path)
    if (key := digest(list(texts))) not in arrays:
        raise UserError(f"{path}: the logits of the large teacher are of other sentences; make them again: {again}")
    return arrays[key].astype(np.float32)


def write_large_teacher_logits(profile: Profile, seed: int, device: str, threads: int) -> int:
    """Stores what the profile's baseline of a seed answers to that seed's transfer set; returns the number of texts."""
    folder = profile.variant_folder(profile.baseline, seed)
    artifact = read_artifact(folder)
    predictor, tokenizer = load(folder, device, threads), load_tokenizer(folder, artifact.max_length)
    splits, card = load_splits(profile, seed), load_card(profile, seed)
    arrays = {}
    for texts, _ in transfer_set(splits, seed, [part for part in PARTS if part == "augmented" or part in splits]):
        logits = predict(predictor, token_ids(tokenizer, texts), BATCH)
        arrays[digest(list(texts))] = logits.astype(np.float16)
    about = {
        "teacher": f"{profile.name}/{profile.baseline}",
        "artifact_sha256": sha256_file(folder / "artifact.json"),
        "data_fingerprint": card["fingerprint"],
        "command": f"make teacher PROFILE={profile.name} SEEDS={seed}",
        "provenance": provenance(seed, threads, device),
    }
    path = profile.results / "logits" / f"seed{seed}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, arrays | {"about": np.array(json.dumps(about, sort_keys=True))})
    return sum(map(len, arrays.values()))
