"""Predictions of every evaluation set by models loaded from disk: predictions.npz in each variant's folder.

A process per core takes one stale variant after another, with one thread each. Raw logits are stored; every metric is
computed from them later. A variant is stale if its predictions are missing, or older than its artifact or than the code
that evaluates.
"""

import json
import multiprocessing
import os
import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from compress import console
from compress.cli import ignore_known_warnings
from compress.config.profile import Profile, load_profile
from compress.cpu import cores
from compress.data.card import held_out
from compress.data.tasks import splits_for
from compress.engines.predictor import BATCH_TOLERANCE, Predictor, load, load_tokenizer, predict, token_ids
from compress.errors import Skip, UserError, failure
from compress.files import date_to_start, remove, sha256_file, write_arrays
from compress.metrics import quality
from compress.provenance import origin
from compress.storage.artifact import read_artifact
from compress.storage.record import FILE, read_record, write_record

PREDICTIONS = "predictions.npz"
BATCH = 16
ALONE_SENTENCES = 200  # predicted alone and in a batch before batches are trusted


def evaluate_stale(profile: Profile, seed: int, device: str, sources: list[Path]) -> None:
    """Evaluates all models whose predictions are stale. Failures are printed; collate makes them the exit status."""
    folders = {variant.name: profile.variant_folder(variant.name, seed, device) for variant in profile.everything}
    todo = [name for name, of in folders.items() if is_built(of) and is_stale(of / PREDICTIONS, sources)]
    workers = min(cores() if device == "cpu" else 1, len(todo))
    if not todo:
        return
    stopped = []  # by the end of a process, which stops the models of all others as well
    with worker_pool(workers) as pool:
        jobs = {name: pool.submit(evaluate_variant, profile.name, name, seed, device) for name in todo}
        for number, (name, job) in enumerate(jobs.items(), 1):
            if isinstance(job.exception(), BrokenProcessPool):
                stopped.append(name)
            else:
                console.say(f"[{number}/{len(todo)}] {name}: {message_of(job, folders[name])}")
    for name in stopped:
        with worker_pool(1) as pool:
            job = pool.submit(evaluate_variant, profile.name, name, seed, device)
            console.say(f"{name}: {message_of(job, folders[name])}")


def message_of(job: Future, folder: Path) -> str:
    """The message of an evaluation, or its failure."""
    try:
        return job.result()
    except Exception as error:
        remove(folder / PREDICTIONS)  # those of an older model, or by older code, must not stay
        return failure(error)


def worker_pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may deadlock
    return ProcessPoolExecutor(workers, mp_context=context, initializer=prepare_worker)


def is_built(folder: Path) -> bool:
    return (folder / FILE).exists() and read_record(folder).status == "ok"


def is_stale(path: Path, sources: list[Path]) -> bool:
    """Whether a file of a variant's folder is missing, or older than the folder's model or one of the sources."""
    inputs = [path.with_name("artifact.json"), *sources]
    return not path.exists() or path.stat().st_mtime < max(source.stat().st_mtime for source in inputs)


def prepare_worker() -> None:
    ignore_known_warnings()
    os.environ["OMP_NUM_THREADS"] = "1"


def evaluate_variant(profile_name: str, name: str, seed: int, device: str) -> str:
    """Evaluates one variant and writes its predictions; returns the message for the console.

    A model that this machine can't run is replaced by a record with the status skipped. Raises UserError for one that
    can't be loaded, whose record is then removed, or whose logits are not finite, whose record is then failed.
    """
    profile = load_profile(profile_name)
    variant = next(v for v in profile.everything if v.name == name)
    folder = profile.variant_folder(name, seed, device)
    cache = profile.seed_folder(seed, device) / "cache" / "inductor"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)  # shared with the timing passes
    splits, _, _ = splits_for(profile, variant, seed)
    texts = {key: split["text"][:] for key, split in splits.items() if key not in ("train", "unlabelled")}
    if profile.teacher and (unlabelled := held_out(splits)):
        texts["unlabelled"] = unlabelled
    try:
        arrays = evaluate_folder(folder, texts, device)
    except Skip as skip:
        without_model = {"status": "skipped", "reason": str(skip), "sizes": None, "artifact_sha256": None}
        record = read_record(folder).model_copy(update=without_model)
        remove(folder)
        write_record(folder, record)
        return f"skipped: {skip}"
    except UserError:
        remove(folder / FILE)  # so that the next run builds it again
        raise
    if broken := [key for key in arrays if key.startswith("logits") and not np.isfinite(arrays[key]).all()]:
        error = UserError(f"its predictions are not finite: {', '.join(broken)}")
        record = read_record(folder).model_copy(update={"status": "failed", "reason": str(error)})
        write_record(folder, record)
        raise error
    write_arrays(folder / PREDICTIONS, arrays)
    date_to_start(folder / PREDICTIONS)
    seconds = json.loads(str(arrays["about"]))["seconds"]
    labels = np.array(splits["validation"]["label"])
    f1 = "" if profile.no_quality else f", validation F1 {quality(arrays['logits/validation'], labels)['f1']:.4f}"
    return f"evaluated in {seconds:.0f} s{f1}"


def evaluate_folder(folder: Path, texts: dict[str, list[str]], device: str) -> dict[str, np.ndarray]:
    """The arrays of predictions.npz for an artifact folder; logits are float32 [sentences, classes] per set."""
    began, origin_of_code = time.perf_counter(), origin(device)
    artifact = read_artifact(folder)
    predictor = load(folder, device, threads=1)
    tokenizer = load_tokenizer(folder, artifact.max_length)
    arrays, invariant = predict_sets(predictor, {key: token_ids(tokenizer, rows) for key, rows in texts.items()})
    about = {
        "precision": predictor.precision,
        "threads": predictor.threads,
        "batch_invariant": invariant,
        "artifact_sha256": sha256_file(folder / "artifact.json"),
        "seconds": time.perf_counter() - began,
        "origin": origin_of_code,
    }
    return arrays | {"about": np.array(json.dumps(about))}


def predict_sets(predictor: Predictor, ids: dict[str, list]) -> tuple[dict[str, np.ndarray], bool]:
    """Logits of every set, and whether a sentence has the same logits alone and in a batch.

    Test logits are those at batch 1. Where batches make no difference, most of them are computed in batches.
    """
    batched = predict(predictor, ids["test"], BATCH)
    alone = predict(predictor, ids["test"][:ALONE_SENTENCES])
    invariant = bool(np.abs(batched[: len(alone)] - alone).max() <= BATCH_TOLERANCE)
    rest = ids["test"][len(alone) :]
    remaining = predict(predictor, rest) if rest and not invariant else batched[len(alone) :]
    arrays = {f"logits/{name}": predict(predictor, rows, BATCH) for name, rows in ids.items() if name != "test"}
    return arrays | {"logits/test": np.concatenate([alone, remaining]), "logits_batched/test": batched}, invariant
