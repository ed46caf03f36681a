"""Artifact folders to served models: checked, warmed up, tested for batch invariance, and timed for admission."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from compress.cpu import warn_of_saturation
from compress.engines.predictor import BATCH_TOLERANCE, Predictor, batches, load, load_tokenizer, token_ids
from compress.errors import UserError
from compress.files import sha256_file
from compress.serving.batching import Model, fit_cost
from compress.serving.limits import Options
from compress.storage.artifact import Artifact, read_artifact
from tokenizers import Tokenizer

THREAD_SAFE = ("onnxruntime", "torch", "numpy")  # backends whose loaded model several workers may call at once
# The first input of every model: sentences of different lengths, so that a batch of them is padded.
PROBE = (
    "Good.",
    "It bored me to tears.",
    "A film that grows on you, if you let it.",
    "The plot is thin, the acting worse, and yet somehow I could not look away until the credits had rolled.",
    "Sent it back after a week: the battery dies, the screen flickers, and nobody at the shop answers the telephone.",
    "Nothing in the first hour prepares you for the last ten minutes, which are the best that this director has made.",
)


def load_models(folders: Sequence[Path], options: Options) -> tuple[list[Model], list[Tokenizer], list[dict]]:
    """(models with a predictor per worker, the distinct tokenizers, the description of each model for /info).

    Raises UserError for a damaged artifact, and when two models have the same name.
    """
    artifacts = [read_artifact(folder, verify=False) for folder in folders]  # load() verifies the files
    check_names(folders, artifacts)
    # Engines load before tokenizers: their temporary memory can then be reused.
    loaded = [load_workers(*pair, options) for pair in zip(folders, artifacts, strict=True)]
    models, infos, tokenizers = [], [], {}
    for folder, artifact, predictors in zip(folders, artifacts, loaded, strict=True):
        kind = (sha256_file(folder / "tokenizer.json"), artifact.max_length)
        if kind not in tokenizers:
            tokenizers[kind] = load_tokenizer(folder, artifact.max_length)
        number, ids = list(tokenizers).index(kind), token_ids(tokenizers[kind], PROBE)
        invariant = all([is_invariant(predictor, ids) for predictor in predictors])  # also warms up each of them
        max_batch = options.max_batch if invariant else 1
        seconds_per_call, seconds_per_token = fit_cost(predictors[-1], artifact.max_length)
        models.append(
            Model(
                name=artifact.variant,
                labels=artifact.labels,
                tokenizer=number,
                predictors=predictors,
                max_length=artifact.max_length,
                max_batch=max_batch,
                seconds_per_call=seconds_per_call,
                seconds_per_token=seconds_per_token,
                length_step=predictors[-1].length_step,
            )
        )
        warn_of_saturation(artifact.variant, artifact.backend, predictors[-1].precision, artifact.options)
        infos.append(describe(folder, artifact, predictors[-1], invariant, max_batch))
    return models, list(tokenizers.values()), infos


def check_names(folders: Sequence[Path], artifacts: Sequence[Artifact]) -> None:
    names = [artifact.variant for artifact in artifacts]
    for folder, name in zip(folders, names, strict=True):
        if names.count(name) > 1:
            raise UserError(f"{folder}: two models are called {name!r}: serve one of them")


def load_workers(folder: Path, artifact: Artifact, options: Options) -> list[Predictor]:
    """A predictor per worker; the same one for all where the backend is thread-safe."""
    if artifact.backend in THREAD_SAFE:
        return [load(folder, threads=options.threads)] * options.workers
    return [load(folder, threads=options.threads) for _ in range(options.workers)]


def is_invariant(predictor: Predictor, ids: Sequence[Sequence[int]]) -> bool:
    """True if sentences have the same logits alone and in one padded batch."""
    alone = np.concatenate([predictor(*arrays) for _, *arrays in batches(ids, 1)])
    ((_, *arrays),) = batches(ids, len(ids))
    return bool(np.abs(predictor(*arrays) - alone).max() <= BATCH_TOLERANCE)


def describe(folder: Path, artifact: Artifact, predictor: Predictor, invariant: bool, max_batch: int) -> dict:
    """A model's entry in /info, with its measured quality."""
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
        **measured_quality(folder),
    }


def measured_quality(folder: Path) -> dict:
    """f1_test and batch_flip_rate from the folder's measured.json; None where it is missing.

    Raises UserError if the file has other content.
    """
    path = folder / "measured.json"
    if not path.exists():
        return {"f1_test": None, "batch_flip_rate": None}
    try:
        values = json.loads(path.read_text("utf-8"))
        return {name: None if values[name] is None else float(values[name]) for name in ("f1_test", "batch_flip_rate")}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); remove it, or run: make results") from None
