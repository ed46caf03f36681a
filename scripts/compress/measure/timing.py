"""One timing pass: a process that times every stale variant in random order, in alternation with the fp32 baseline.

timing-<pass>.npz in a variant's folder holds raw seconds; speed-ups are computed from them later. Several passes, each
with its own order, spread a disturbance of the machine over all variants. A file is stale if it is missing, older than
its model, than the baseline or than the code that measures, or was taken with another budget or number of threads.
"""

import gc
import json
import os
import time
from pathlib import Path

import numpy as np
from compress import console
from compress.config.profile import Profile
from compress.data.card import load_splits
from compress.engines.predictor import load, load_tokenizer
from compress.errors import UserError, failure
from compress.files import atomic_path, date_to_start, read_arrays, remove, write_arrays
from compress.measure.coldstart import measure_cold
from compress.measure.evaluation import is_built, is_stale
from compress.measure.latency import (
    Timed,
    best_batch,
    shares_of,
    time_latency,
    time_shapes,
    time_throughput,
    warm_up,
)
from compress.provenance import origin
from compress.storage.artifact import read_artifact

COLD = "cold.npz"


def timing_file(folder: Path, number: int) -> Path:
    return folder / f"timing-{number}.npz"


def run_pass(profile: Profile, number: int, threads: int, device: str, sources: list[Path]) -> None:
    """Times the stale variants of seed 0 in alternation with the baseline.

    A failure is printed; the next run tries again.
    """
    baseline = profile.variant_folder(profile.baseline, 0, device)
    if not is_built(baseline):
        console.say(f"{profile.baseline} is not built, so nothing is timed")
        return
    inputs = [baseline / "artifact.json", *sources]
    files = {v.name: timing_file(profile.variant_folder(v.name, 0, device), number) for v in profile.variants}
    todo = [
        variant
        for variant in profile.variants
        if variant.timed
        and needs_timing(files[variant.name], threads, inputs, budget=budget_of(profile, variant.name, number))
    ]
    np.random.default_rng(number).shuffle(todo)
    if not todo:
        return
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(profile.seed_folder(0, device) / "cache" / "inductor")
    texts = load_splits(profile, seed=0)["test"]["text"][:]
    sample = [texts[i] for i in np.random.default_rng(number).permutation(len(texts))]
    base = load_timed(baseline, device, threads, sample)
    baseline_batch = warm_up_and_choose_batch(profile, base, device)
    origin_of_pass = origin(device)
    gc.disable()  # as timeit does
    for position, variant in enumerate(todo, 1):
        folder = files[variant.name].parent
        began = time.perf_counter()
        try:
            arrays, about = time_variant(profile, variant, folder, base, baseline_batch, number, threads, device)
            about |= {"seconds": time.perf_counter() - began, "origin": origin_of_pass}
            write_arrays(files[variant.name], arrays | {"about": np.array(json.dumps(about))})
            date_to_start(files[variant.name])
            ratio = float(np.median(arrays["latency_seconds"][:, 1] / arrays["latency_seconds"][:, 0]))
            message = f"timed in {about['seconds']:.0f} s, {ratio:.2f} times the baseline's speed"
        except Exception as error:
            remove(files[variant.name])  # older times, of another model or code, must not stay
            message = failure(error)
        console.say(f"pass {number + 1} of {profile.measure.passes} [{position}/{len(todo)}] {variant.name}: {message}")
        gc.collect()


def budget_of(profile: Profile, name: str, number: int) -> dict:
    """What decides how a variant is timed in a pass; shapes are timed in the first one."""
    budget, shapes = profile.measure.model_dump(mode="json", exclude={"shapes"}), profile.measure.shapes
    if number == 0 and name in shapes.variants:
        budget["shapes"] = shapes.model_dump(mode="json", exclude={"variants"})
    return budget


def needs_timing(path: Path, threads: int, inputs: list[Path], **wanted) -> bool:
    """Whether the folder's model is built, and the file has no current measurements with these threads and facts."""
    if not is_built(path.parent):
        return False
    try:
        about = json.loads(str(read_arrays(path)["about"]))
    except (UserError, KeyError, ValueError):
        return True  # missing or damaged
    wanted |= {"threads_requested": threads}
    return is_stale(path, inputs) or any(about.get(name) != value for name, value in wanted.items())


def load_timed(folder: Path, device: str, threads: int, texts: list[str]) -> Timed:
    tokenizer = load_tokenizer(folder, read_artifact(folder, verify=False).max_length)
    return Timed(load(folder, device, threads), tokenizer, texts)


def batch_sizes(profile: Profile, device: str) -> list[int]:
    return profile.measure.batch_sizes + (profile.measure.cuda_batch_sizes if device == "cuda" else [])


def budgets_of_pass(profile: Profile) -> tuple[int, int]:
    """(calls of latency, sentences of throughput) of one pass."""
    budgets = profile.measure
    return -(-budgets.latency_calls // budgets.passes), -(-budgets.throughput_sentences // budgets.passes)


def warm_up_and_choose_batch(profile: Profile, model: Timed, device: str) -> int:
    """Runs the model once on everything that a pass times; returns its best batch size."""
    calls, sentences = budgets_of_pass(profile)
    warm_up(model, calls)
    sizes = batch_sizes(profile, device)
    return best_batch(model, shares_of(model, sentences, max(sizes)), sizes)


def time_variant(profile, variant, folder, base: Timed, baseline_batch, number, threads, device):
    """(arrays, about) of timing-<pass>.npz for one variant; the arrays' columns are (variant, baseline)."""
    model = load_timed(folder, device, threads, base.texts)
    batch = warm_up_and_choose_batch(profile, model, device)
    calls, sentences = budgets_of_pass(profile)
    from_ids, from_text = time_latency((model, base), calls)
    largest = max(batch_sizes(profile, device))
    throughput = time_throughput((model, base), sentences, (batch, baseline_batch), largest)
    about = {
        "batch_size": batch,
        "baseline_batch_size": baseline_batch,
        "throughput_sentences": min(sentences, len(base.texts)),
        "threads": model.predictor.threads,
        "baseline_threads": base.predictor.threads,
        "threads_requested": threads,
        "budget": budget_of(profile, variant.name, number),
    }
    arrays = {"latency_seconds": from_ids, "text_seconds": from_text, "throughput_seconds": throughput}
    if "shapes" in about["budget"]:
        try:
            arrays["shape_seconds"] = time_shapes(lambda t: load(folder, device, t), model.ids, profile.measure.shapes)
        finally:
            load(folder, device, threads)  # shapes are timed with other numbers of threads: set ours again
    return arrays, about


def measure_cold_starts(profile: Profile, threads: int, device: str, sources: list[Path]) -> None:
    """Measures the stale cold starts, one process after the other. One that fails is tried again by the next run."""
    texts = load_splits(profile, seed=0)["test"]["text"][:]
    for variant in profile.variants:
        folder = profile.variant_folder(variant.name, 0, device)
        if not (variant.timed and needs_timing(folder / COLD, threads, sources)):
            continue
        try:
            with atomic_path(folder / COLD) as temporary:
                measure_cold(folder, texts, device, threads, temporary)
            date_to_start(folder / COLD)
        except Exception as error:
            remove(folder / COLD)
            console.say(f"{variant.name}: {failure(error)}")
