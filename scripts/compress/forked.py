"""Forks of a process that has imported libraries and nothing else; compress.measure's protocol in such a fork.

Importing PyTorch and transformers takes longer than a small model's answers: here it is done once. The arrays are those
of a fresh process to the bit. Seconds that include an import, and peak memory, are not: what a fork shares with its
parent is not loaded again, and hardly counted. Where those count, compress.measure starts a process of its own.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import forkserver

import numpy as np
from compress.errors import UserError
from compress.measure import protocol as measuring
from compress.paths import SCRIPTS


def measure(job: measuring.Questions | measuring.Timing) -> dict[str, np.ndarray]:
    """What a fork finds by the protocol; raises UserError with what went wrong."""
    try:
        with ProcessPoolExecutor(1, mp_context=context()) as pool:
            return pool.submit(measuring.run, job).result()
    except BrokenProcessPool:
        raise UserError(f"measuring {job.variant} failed: its process was killed") from None
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(f"measuring {job.variant} failed: {reason}") from error


@cache
def context():
    """multiprocessing's context that forks it; the first call, before there are threads, starts it. It ends with us."""
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(["compress.warm"])
    # As compress.measure does. So the threads of a lane that has several spin while its variant is made, too.
    set_here = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(SCRIPTS), "OMP_WAIT_POLICY": None}
    kept = {name: os.environ.get(name) for name in set_here}
    _set(set_here)
    try:
        forkserver.ensure_running()
    finally:
        _set(kept)
    return forking


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
