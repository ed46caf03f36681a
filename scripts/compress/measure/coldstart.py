"""Memory and first calls of one model, in a process that loads this model and nothing else: cold.npz.

Started as `python -m compress.measure.coldstart FOLDER TEXTS DEVICE THREADS OUTPUT`; TEXTS is a JSON list.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from compress.cpu import peak_rss_bytes
from compress.engines.predictor import Predictor, load, load_tokenizer, predict
from compress.errors import UserError
from compress.measure.latency import single
from compress.paths import SCRIPTS
from compress.storage.artifact import read_artifact

LENGTHS = 12  # new lengths that are called twice
BATCH = 16  # of the longest sentences, for the peak of memory


def measure_cold(folder: Path, texts: list[str], device: str, threads: int, output: Path) -> None:
    """Runs main() below in a new process; raises UserError with the process's last line if it fails."""
    count = str(threads)
    environment = os.environ | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "HF_HUB_OFFLINE": "1"}
    environment.pop("OMP_WAIT_POLICY", None)  # set for training; a measured model may spin
    with tempfile.TemporaryDirectory(prefix="cold-", dir=output.parent) as temporary:  # not every TMPDIR has room
        # An empty cache, for torch.compile: kernels of earlier runs would hide what a first call costs.
        environment["TORCHINDUCTOR_CACHE_DIR"] = temporary
        sentences = Path(temporary) / "texts.json"
        sentences.write_text(json.dumps(texts), "utf-8")
        command = [sys.executable, "-m", __name__, str(folder), str(sentences), device, count, str(output)]
        done = subprocess.run(command, cwd=SCRIPTS, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"exit status {done.returncode}"
        raise UserError(f"{folder}: its cold start can't be measured: {reason}")


def main(folder: str, texts: str, device: str, threads: str, output: str) -> None:
    sentences = json.loads(Path(texts).read_text("utf-8"))
    artifact = read_artifact(Path(folder), verify=False)
    began = time.perf_counter()
    predictor = load(Path(folder), device, int(threads))
    load_seconds = time.perf_counter() - began
    tokenizer = load_tokenizer(Path(folder), artifact.max_length)
    ids, tokenize_seconds = [], np.empty(len(sentences))
    for i, text in enumerate(sentences):
        began = time.perf_counter()
        ids.append(tokenizer.encode(text).ids)
        tokenize_seconds[i] = time.perf_counter() - began
    cold = time_new_lengths(predictor, ids)
    predict(predictor, list({len(row): row for row in ids}.values()))  # a sentence of every length
    predict(predictor, sorted(ids, key=len)[-BATCH:], BATCH)
    about = {"peak_rss_bytes": peak_rss_bytes(), "load_seconds": load_seconds, "threads_requested": int(threads)}
    with open(output, "wb") as file:  # with a name, np.savez would append .npz
        np.savez(file, cold_seconds=cold, tokenize_seconds=tokenize_seconds, about=np.array(json.dumps(about)))


def time_new_lengths(predictor: Predictor, ids: list[list[int]]) -> np.ndarray:
    """Seconds [lengths, 2] of the first and the second call at each of some lengths that are new to the model.

    The first number is the time of the first request after a start.
    """
    by_length = {len(row): row for row in reversed(ids)}
    rows = list(by_length.values())[:LENGTHS]
    seconds = np.empty((len(rows), 2))
    for i, row in enumerate(rows):
        for again in (0, 1):
            began = time.perf_counter()
            predictor(*single(row))
            seconds[i, again] = time.perf_counter() - began
    return seconds


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
