"""The measurement protocol, run in fresh processes that know nothing but folders on disk.

`measure` starts `python -m compress.measure JOB OUTPUT`, at most twice for a variant:
- Questions: the process loads the variant, predicts the test set at batch 1 (or in batches, once it is shown that this
  variant's logits don't depend on them) and the other sets in batches.
- Timing: the process loads the variant and only then the baseline beside it. Their paired times are taken while the
  threads' cores are near each other (Cores). It needs a quiet machine. What takes long to compile answers here, too.
Both begin with the variant alone: the seconds of its first calls, and its peak memory when it has met every length.
What comes back are raw logits and raw times (seconds); every metric is computed from them later.
A call ends when its logits are in the host's memory: on a GPU the clock waits for the device, and counts both copies.
Python's garbage collector is off.
"""

import dataclasses
import gc
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from compress.errors import UserError
from compress.paths import SCRIPTS

BLOCK = 20  # calls in a row per model: a small model keeps its caches warm, as it does in service
SETTLE = 0.05  # seconds of untimed calls before timed ones: the other model's idle threads still spin and hold a core
INVARIANCE_BATCH = 16
INVARIANCE_SENTENCES = 200  # that are asked alone and in a batch before batches are trusted
INVARIANCE_TOLERANCE = 1e-4  # logits
ROUNDS = 8  # at most, of passes through a share of the sentences: many short ones say more than few long ones
COLD_LENGTHS = 12
APART = 1.7  # times what it takes between near cores that a handover takes: then they are far from each other
HANDOVERS = 300
FOR_OTHER_TASKS = ("sklearn", "scipy")  # transformers would import them, which takes a second and more
PAUSE = 0.1  # seconds: idle, a virtual machine's cores come back together


@dataclasses.dataclass(frozen=True)
class Questions:
    variant: str  # folder
    device: str
    threads: int
    texts: dict[str, list[str]]  # validation and test sets by name


@dataclasses.dataclass(frozen=True)
class Timing:
    variant: str  # folders
    baseline: str
    device: str
    threads: int
    seed: int
    texts: list[str]  # the test set
    warmup: int
    latency_calls: int
    throughput_sentences: int
    batch_sizes: list[int]
    patience: float  # seconds, see Cores
    baseline_batch_size: int | None = None  # the best of them for the baseline, if that is known
    handover: float = math.inf  # seconds between near cores, if those timed before have found that out; see Cores
    shapes: dict | None = None  # compress.profile.Shapes: also time these batches, lengths and threads
    questions: dict[str, list[str]] | None = None  # also answer these validation and test sets


def measure(job: Questions | Timing) -> dict[str, np.ndarray]:
    """What a new process finds by the protocol; raises UserError with the process's last words."""
    with tempfile.TemporaryDirectory(prefix="measure-") as folder:
        asked, output = Path(folder) / "job.json", Path(folder) / "found.npz"
        asked.write_text(json.dumps([type(job).__name__, dataclasses.asdict(job)]), "utf-8")
        threads = str(job.threads)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
        environment.pop("OMP_WAIT_POLICY", None)  # set for training; a measured model may spin
        command = [sys.executable, "-m", "compress.measure.protocol", str(asked), str(output)]
        done = subprocess.run(command, cwd=SCRIPTS, env=environment, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            killed = f"killed by {signal.Signals(-done.returncode).name}" if done.returncode < 0 else None
            said = done.stderr.strip().splitlines()
            reason = killed or (said[-1] if said else f"exit status {done.returncode}")
            raise UserError(f"measuring {job.variant} failed: {reason}")
        with np.load(output, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}


def run(job: Questions | Timing) -> dict[str, np.ndarray]:
    """The same in this process."""
    gc.disable()  # as timeit does
    # Empty, for torch.compile: kernels of earlier runs would hide what a first call costs.
    with tempfile.TemporaryDirectory(prefix="compiled-", ignore_cleanup_errors=True) as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        return answers(job) if isinstance(job, Questions) else timings(job)


def answers(job: Questions) -> dict[str, np.ndarray]:
    """Logits of every set, and what hangs neither on the baseline nor on a quiet machine.

    All that counts of a variant that is not timed; a change of the timing leaves it as it is.
    """
    variant, load_seconds, tokenizer = loaded(job.variant, job.device, job.threads)
    ids = {name: [tokenizer.encode(text).ids for text in texts] for name, texts in job.texts.items()}
    _, peak_rss = begin(variant, ids["test"])
    out, invariant = ask(variant, ids)
    about = {
        "peak_rss_bytes": peak_rss,
        "load_seconds": load_seconds,
        "threads": variant.threads,
        "baseline_threads": variant.threads,
        "precision": variant.precision,
        "batch_invariant": invariant,
    }
    return out | {"about": np.array(json.dumps(about))}


def timings(job: Timing) -> dict[str, np.ndarray]:
    """What a start, a new length and a sentence cost, the last beside the baseline in the same process."""
    variant, load_seconds, tokenizer = loaded(job.variant, job.device, job.threads)
    ids, tokenize_seconds = [], np.empty(len(job.texts))
    for i, text in enumerate(job.texts):
        began = time.perf_counter()
        ids.append(tokenizer.encode(text).ids)
        tokenize_seconds[i] = time.perf_counter() - began
    cold, peak_rss = begin(variant, ids)
    out = {"tokenize_seconds": tokenize_seconds, "cold_seconds": cold}
    if job.questions:
        from compress.engines.predictor import token_ids

        logits, invariant = ask(variant, {name: token_ids(tokenizer, texts) for name, texts in job.questions.items()})
        answered = {"precision": variant.precision, "batch_invariant": invariant}
        out |= logits | {"about": np.array(json.dumps(answered))}
    cores = Cores(variant.threads if job.device == "cpu" else 1, job.patience, job.handover)
    arrays, about = time_beside_baseline(job, variant, ids, cores)
    out |= arrays
    if job.shapes:
        out["shape_seconds"] = time_shapes(Path(job.variant), job.device, ids, job.shapes, cores)
    if cores.handovers:
        out |= {"handover_seconds": np.array(cores.handovers), "near_handover_seconds": np.array(cores.near)}
    about |= {"peak_rss_bytes": peak_rss, "load_seconds": load_seconds, "threads": variant.threads}
    return out | {"timed_about": np.array(json.dumps(about))}


def loaded(folder: str, device: str, threads: int):
    """(the variant, seconds that loading it and its library took, its tokenizer)."""
    from compress.engines.predictor import load, load_tokenizer
    from compress.storage.artifact import read_artifact

    began = time.perf_counter()
    variant = load(Path(folder), device, threads)
    load_seconds = time.perf_counter() - began
    max_length = read_artifact(Path(folder), verify=False).max_length
    return variant, load_seconds, load_tokenizer(Path(folder), max_length)


def begin(variant, ids: list) -> tuple[np.ndarray, int]:
    """(seconds of the variant's first calls, peak bytes of its process after a sentence of every length and a batch).

    The batch is of the longest sentences.
    """
    from compress.engines.predictor import predict

    cold = time_cold_calls(variant, ids)
    predict(variant, list({len(row): row for row in ids}.values()))
    predict(variant, sorted(ids, key=len)[-INVARIANCE_BATCH:], INVARIANCE_BATCH)
    return cold, peak_rss_bytes()


def ask(variant, ids: dict[str, list]) -> tuple[dict[str, np.ndarray], bool]:
    """Logits of every set, and whether they are the same alone and in a batch (then batches give them faster).

    Only the test set's count at batch 1; out of domain and on validation, batches are near enough.
    """
    from compress.engines.predictor import predict

    batched = predict(variant, ids["test"], INVARIANCE_BATCH)
    alone = predict(variant, ids["test"][:INVARIANCE_SENTENCES])
    invariant = bool(np.abs(batched[: len(alone)] - alone).max() <= INVARIANCE_TOLERANCE)
    left = ids["test"][len(alone) :]
    rest = predict(variant, left) if left and not invariant else batched[len(alone) :]
    out = {f"logits/{name}": predict(variant, rows, INVARIANCE_BATCH) for name, rows in ids.items() if name != "test"}
    out |= {"logits/test": np.concatenate([alone, rest]), "logits_batched/test": batched}
    return out, invariant


class Cores:
    """The cores that this process's threads run on: whether they are near each other, and how to bring them there.

    The host of a virtual machine moves its cores about. On one die a cache line takes some 25 ns from one core to the
    other, between two sockets ten times that; a network of a millisecond on two threads then takes half as long again,
    the baseline a quarter, for half a minute at a time, and one thread alone is as fast as ever. Hosts put busy cores
    far from each other, and idle ones together again when they wake: so a pause helps where waiting at work would not.
    """

    def __init__(self, threads: int, patience: float, handover: float = math.inf):
        """`patience`: seconds that pauses, and times that are taken again, may last in all.

        `handover`: the seconds that it takes where cores are near, as far as known; else they are looked for at once,
        for half the patience. All may fall into a time of far cores, so that `near` is learned from what is seen, too.
        """
        self.threads = threads
        self.handovers: list[float] = []  # seconds, after all that was kept
        self.patience = patience
        self.known = handover
        self.seen: list[float] = []  # seconds
        if threads > 1 and handover == math.inf:
            for _ in range(int(patience / 2 / PAUSE)):
                time.sleep(PAUSE)
                self.look()

    @property
    def near(self) -> float:
        """Seconds between near cores: a tenth of those seen are less (the least may be an outlier), or a known one."""
        return min(self.known, float(np.quantile(self.seen, 0.1)))

    def together(self) -> Iterator[None]:
        """For a loop whose body times something: again, until the cores were near each other before and after it.

        Or until patience has run out; once for a thread alone.
        """
        if self.threads == 1:
            yield
            return
        while True:
            while apart(self.look(), self.near) and self.patience > 0:
                time.sleep(PAUSE)
                self.patience -= PAUSE
            began = time.perf_counter()
            yield
            seconds = self.look()
            if self.patience <= 0 or not apart(seconds, self.near):
                self.handovers.append(seconds)
                return
            self.patience -= time.perf_counter() - began

    def look(self) -> float:
        """Seconds of a handover now, which are taken to the others."""
        self.seen.append(self.handover())
        return self.seen[-1]

    def handover(self) -> float:
        """Seconds that PyTorch takes to give each thread a row and to wait for all, less those of a row itself."""
        import torch

        tables = [torch.zeros(rows, 64) for rows in (1, self.threads)]
        times = np.empty((HANDOVERS, 2))
        with torch.inference_mode():
            for i in range(HANDOVERS):
                for n, table in enumerate(tables):
                    began = time.perf_counter()
                    torch.softmax(table, -1)  # as many threads as rows, whatever their length
                    times[i, n] = time.perf_counter() - began
        return float(np.median(times[:, 1] - times[:, 0]))


def apart(handover, near):
    """Whether handovers of so many seconds are between cores that are far from each other; arrays give arrays."""
    return handover > APART * near


def time_beside_baseline(job: Timing, variant, ids, cores: Cores) -> tuple[dict[str, np.ndarray], dict]:
    """Latency and throughput of the variant and of the baseline, alternating in this process."""
    from compress.engines.predictor import load, load_tokenizer
    from compress.storage.artifact import read_artifact

    baseline = load(Path(job.baseline), job.device, job.threads)
    models = (variant, baseline)
    # A variant may have a tokenizer of its own; the baseline gets the baseline's ids for the same sentence.
    base_artifact = read_artifact(Path(job.baseline), verify=False)
    base_tokenizer = load_tokenizer(Path(job.baseline), base_artifact.max_length)
    most = max(job.latency_calls, job.throughput_sentences)
    sample = np.random.default_rng(job.seed).permutation(len(ids))[:most]
    pairs = [(ids[i], base_tokenizer.encode(job.texts[i]).ids) for i in sample]
    latency = time_latency(models, pairs, job.warmup, job.latency_calls, cores)
    subset = pairs[: job.throughput_sentences]
    sizes = (job.batch_sizes, [job.baseline_batch_size] if job.baseline_batch_size else job.batch_sizes)
    best = [best_batch(models[i], [pair[i] for pair in subset[:128]], sizes[i], cores) for i in (0, 1)]
    rounds = max(1, min(ROUNDS, len(subset) // max(job.batch_sizes)))  # each share fills a batch of any size
    return {"latency_seconds": latency, "throughput_seconds": time_throughput(models, subset, best, rounds, cores)}, {
        "baseline_threads": baseline.threads,
        "batch_size": best[0],
        "baseline_batch_size": best[1],
        "throughput_sentences": len(subset),
    }


def time_cold_calls(model, ids) -> np.ndarray:
    """Seconds [lengths, 2] of the first and the second call at each of some lengths that the model has not seen yet.

    The very first number is what the first request after a start waits for.
    """
    by_length = {len(row): row for row in reversed(ids)}
    times = np.empty((min(COLD_LENGTHS, len(by_length)), 2))
    for i, row in enumerate(list(by_length.values())[: len(times)]):
        inputs = _single(row)
        for again in (0, 1):
            began = time.perf_counter()
            model(*inputs)
            times[i, again] = time.perf_counter() - began
    return times


def time_shapes(folder: Path, device: str, ids, shapes: dict, cores: Cores) -> np.ndarray:
    """Seconds [threads, batches, lengths, calls] for inputs of given shapes; real tokens, each run once unmeasured."""
    from compress.engines.predictor import load

    tokens = np.array([token for row in ids for token in row], np.int64)
    axes = [shapes[name] for name in ("threads", "batches", "lengths")]
    times = np.empty([*map(len, axes), shapes["calls"]])
    for t, threads in enumerate(axes[0]):
        model = load(folder, device, threads)
        together = (cores if threads > 1 else Cores(1, 0)).together
        for b, batch in enumerate(axes[1]):
            for n, length in enumerate(axes[2]):
                input_ids = np.resize(tokens, (batch, length))
                mask = np.ones_like(input_ids)
                for _ in together():
                    model(input_ids, mask)
                    for call in range(shapes["calls"]):
                        began = time.perf_counter()
                        model(input_ids, mask)
                        times[t, b, n, call] = time.perf_counter() - began
    return times


def peak_rss_bytes() -> int:
    """This process's own high-water mark; getrusage would also count that of the process it was started from."""
    status = Path("/proc/self/status").read_text("utf-8")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1))


def time_latency(models, pairs, warmup: int, calls: int, cores: Cores) -> np.ndarray:
    """Seconds [calls, 2] of single sentences at batch 1, variant and baseline in alternating blocks."""
    inputs = [[_single(row) for row in pair] for pair in pairs]
    for i in range(warmup):
        for m, model in enumerate(models):
            model(*inputs[i % len(inputs)][m])
    times = np.empty((calls, 2))
    for start in range(0, calls, BLOCK):
        block = range(start, min(start + BLOCK, calls))
        order = (0, 1) if start // BLOCK % 2 else (1, 0)
        for m in (m for _ in cores.together() for m in order):
            settle(models[m], [inputs[call % len(inputs)][m] for call in block])
            for call in block:
                began = time.perf_counter()
                models[m](*inputs[call % len(inputs)][m])
                times[call, m] = time.perf_counter() - began
    return times


def settle(model, inputs) -> None:
    """Untimed calls until the model has the machine to itself: at least one, for SETTLE seconds."""
    until = time.perf_counter() + SETTLE
    for call in itertools.cycle(inputs):
        model(*call)
        if time.perf_counter() >= until:
            return


def best_batch(model, ids, sizes: list[int], cores: Cores) -> int:
    """The batch size that answers these sentences fastest."""
    if len(sizes) == 1:
        return sizes[0]
    spent = {}
    for size in sizes:
        for _ in cores.together():
            _throughput_pass(model, ids[:size], size)
            began = time.perf_counter()
            _throughput_pass(model, ids, size)
            spent[size] = time.perf_counter() - began
    return min(spent, key=spent.get)


def time_throughput(models, pairs, batch_sizes, rounds: int, cores: Cores) -> np.ndarray:
    """Seconds [rounds, 2] to answer every rounds-th sentence, sorted by length, each model at its best batch."""
    from compress.engines.predictor import batches

    times = np.empty((rounds, 2))
    for r in range(rounds):  # an engine that prepares for a shape has met all of them then, as in service
        _throughput_pass(models[0], [pair[0] for pair in pairs[r::rounds]], batch_sizes[0])
    for r in range(-1, rounds):  # the first once more before all, unmeasured
        order = (0, 1) if r % 2 else (1, 0)
        for m in (m for _ in cores.together() for m in order):
            ids = [pair[m] for pair in pairs[max(r, 0) :: rounds]]
            _, *shortest = next(batches(ids, batch_sizes[m], by_length=True))
            settle(models[m], [shortest])
            began = time.perf_counter()
            _throughput_pass(models[m], ids, batch_sizes[m])
            times[max(r, 0), m] = time.perf_counter() - began
    return times


def _throughput_pass(model, ids, size: int) -> None:
    from compress.engines.predictor import batches

    model.many(arrays for _, *arrays in batches(ids, size, by_length=True))


def _single(ids) -> tuple[np.ndarray, np.ndarray]:
    row = np.array([ids], np.int64)
    return row, np.ones_like(row)


def main(job_path: str, output: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever started this may ignore it, and may have been ended by it
    for library in FOR_OTHER_TASKS:
        sys.modules[library] = None
    name, fields = json.loads(Path(job_path).read_text("utf-8"))
    np.savez(output, **run({"Questions": Questions, "Timing": Timing}[name](**fields)))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
