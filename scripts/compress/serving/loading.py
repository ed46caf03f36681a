"""Artifact folders to models that can be served: read, checked, warmed up, and timed for the cost of a request."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from compress.engines.predictor import Predictor, batches, load, load_tokenizer, token_ids
from compress.errors import UserError
from compress.files import sha256_file
from compress.measure.protocol import INVARIANCE_TOLERANCE
from compress.serving.scheduler import Model, fit_cost
from compress.storage.artifact import Artifact, read_artifact
from tokenizers import Tokenizer

THREAD_SAFE = ("onnxruntime", "torch")  # engines whose loaded model several lanes may call at once
# What a model is asked first: sentences of unlike length, so that one batch of them is padded.
PROBE = (
    "Good.",
    "It bored me to tears.",
    "A film that grows on you, if you let it.",
    "The plot is thin, the acting worse, and yet somehow I could not look away until the credits had rolled.",
    "Sent it back after a week: the battery dies, the screen flickers, and nobody at the shop answers the telephone.",
    "Nothing in the first hour prepares you for the last ten minutes, which are the best that this director has made.",
)


def load_models(
    folders: Sequence[Path], lanes: int, threads: int, max_batch: int
) -> tuple[list[Model], list[Tokenizer], list]:
    """(models with a predictor for every lane, each distinct tokenizer once, what /info says of each model).

    Raises UserError for a folder that is no whole artifact, and when two models have one name.
    """
    artifacts = [read_artifact(folder, verify=False) for folder in folders]  # load() does
    names = [artifact.variant for artifact in artifacts]
    for folder, name in zip(folders, names, strict=True):
        if names.count(name) > 1:
            raise UserError(f"{folder}: two models are called {name!r}: serve one of them")
    # All engines before any tokenizer: while it loads, an engine needs for a moment what the tokenizers take for good.
    loaded = []
    for folder, artifact in zip(folders, artifacts, strict=True):
        first = load(folder, threads=threads)
        shared = artifact.backend in THREAD_SAFE
        loaded.append([first if shared else load(folder, threads=threads) for _ in range(lanes - 1)] + [first])
    models, infos, kinds = [], [], {}
    for folder, artifact, predictors in zip(folders, artifacts, loaded, strict=True):
        kind = (sha256_file(folder / "tokenizer.json"), artifact.max_length)
        if kind not in kinds:
            kinds[kind] = load_tokenizer(folder, artifact.max_length)
        number, ids = list(kinds).index(kind), token_ids(kinds[kind], PROBE)
        invariant = all([is_invariant(predictor, ids) for predictor in predictors])  # warms each up, too
        batch = max_batch if invariant else 1
        costs = fit_cost(predictors[-1])
        about = (artifact.variant, artifact.labels, number, predictors, artifact.max_length, batch)
        models.append(Model(*about, *costs))
        infos.append(describe(folder, artifact, predictors[-1], invariant, batch))
    return models, list(kinds.values()), infos


def is_invariant(predictor: Predictor, ids: Sequence[Sequence[int]]) -> bool:
    """True if sentences get the same logits alone and in one padded batch."""
    alone = np.concatenate([predictor(*arrays) for _, *arrays in batches(ids, 1)])
    ((_, *arrays),) = batches(ids, len(ids))
    return bool(np.abs(predictor(*arrays) - alone).max() <= INVARIANCE_TOLERANCE)


def describe(folder: Path, artifact: Artifact, predictor: Predictor, invariant: bool, max_batch: int) -> dict:
    """What /info says of a model, what was measured of it included."""
    return {
        "name": artifact.variant,
        "method": artifact.method,
        "backend": artifact.backend,
        "precision": predictor.precision,
        "labels": artifact.labels,
        "max_length": artifact.max_length,
        "size_mb": round(artifact.size / 1e6, 3),
        "batch_invariant": invariant,
        "max_batch": max_batch,
        **measured(folder),
    }


def measured(folder: Path) -> dict:
    """f1_test and batch_flip_rate from the folder's measured.json, which results have left there; else None.

    Raises UserError if the file holds something else.
    """
    path = folder / "measured.json"
    if not path.exists():
        return {"f1_test": None, "batch_flip_rate": None}
    try:
        found = json.loads(path.read_text("utf-8"))
        return {name: None if found[name] is None else float(found[name]) for name in ("f1_test", "batch_flip_rate")}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); remove it, or run: make results") from None
