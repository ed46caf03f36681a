"""Answers alone, by compress.measure's protocol, in forks of a process that has imported libraries and nothing else.

Of a further training seed only the quality counts, and importing PyTorch and transformers takes longer than a small
model's answers: here it is done once. The arrays are those of a fresh process to the bit. Seconds and peak memory are
not: what a fork shares with its parent is not loaded again, and hardly counted. compress.measure takes those.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
from compress import measure as measuring
from compress.files import atomic_path
from compress.profile import SCRIPTS, UserError


def measure(job: measuring.Job, output: Path) -> None:
    """Runs the protocol in a fork and writes `output` (.npz); raises UserError with what went wrong."""
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with ProcessPoolExecutor(1, mp_context=_context()) as pool:
            pool.submit(_write, job, output).result()
    except BrokenProcessPool:
        raise UserError(f"measuring {job.variant} failed: its process was killed") from None
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(f"measuring {job.variant} failed: {reason}") from error


def _write(job: measuring.Job, output: Path) -> None:
    arrays = measuring.run(job)
    with atomic_path(output) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


@cache
def _context():
    """Starts the process that is forked; it ends with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["compress.warm"])
    kept = {name: os.environ.get(name) for name in ("HF_HUB_OFFLINE", "PYTHONPATH")}
    os.environ.update(HF_HUB_OFFLINE="1", PYTHONPATH=str(SCRIPTS))
    try:
        forkserver.ensure_running()
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return context
