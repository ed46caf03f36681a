"""The logits of a large teacher, stored once so that students can learn from it without training it.

results/<teacher's profile>/logits/seed<k>.npz, written by compress.graph.teacher_logits: for each part of the transfer
set of a seed, and for the held-out texts, the logits as half floats [texts, classes], under the hash of the part's
texts; "about" says what made them. Some rows have their maximum subtracted: use them in a softmax.
"""

import json
from collections.abc import Sequence

import numpy as np
from compress.config.profile import Profile
from compress.data.card import load_card
from compress.errors import Skip, UserError
from compress.files import digest, read_arrays
from compress.paths import ROOT


def large_teacher_logits(profile: Profile, seed: int, texts: Sequence[str]) -> np.ndarray:
    """The large teacher's logits float32 [texts, classes] of a part of the seed's transfer set, or the held-out texts.

    Raises Skip if they are missing for this seed, UserError if the teacher was trained on other sentences: these could
    be test sentences of the student.
    """
    path = profile.teacher_file(seed)
    again = f"make teacher PROFILE={profile.teacher} SEEDS={seed}"
    if not path.exists():
        raise Skip(f"{path.relative_to(ROOT)}: no logits of the large teacher for this seed; they are made by: {again}")
    arrays = read_arrays(path)
    fingerprint = json.loads(str(arrays.get("about", "{}"))).get("data_fingerprint")
    key = digest(list(texts))
    if fingerprint != load_card(profile, seed)["fingerprint"] or key not in arrays:
        raise UserError(
            f"{path}: the large teacher learned from other sentences; give the profiles {profile.teacher} and "
            f"{profile.name} the same [data], then run: {again}"
        )
    return arrays[key].astype(np.float32)
