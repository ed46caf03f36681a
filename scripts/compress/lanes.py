"""Variants made and asked side by side, each in processes of its own with its share of the machine's threads."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection

from compress import forked
from compress.files import locked


def prepare(stage, variants) -> None:
    """Makes and asks those of the variants where that is left to do, stage.lanes at a time, parents first.

    Champions are chosen when all others have their times: not here. What fails here, or is there but damaged, is left
    as it was: the stage does it, alone, and tells.
    """
    from tqdm import tqdm

    missing = {v.name for v in variants if not stage.is_made(v, verify=False)}
    waiting = [v for v in variants if v.method != "champion" and (v.name in missing or not stage.is_prepared(v))]
    if len(waiting) < 2:
        return
    # The longest last would run alone.
    waiting.sort(key=lambda v: -v.training.epochs if v.has_training else -getattr(v, "compile", False))
    print(f"{len(waiting)} variants to make and ask, {stage.lanes} at a time", flush=True)
    running = {}
    with (
        ProcessPoolExecutor(stage.lanes, mp_context=forked.context(), initializer=_start) as makers,
        ThreadPoolExecutor(stage.lanes) as lanes,
        tqdm(total=len(waiting), unit="variant", smoothing=0) as bar,
    ):
        try:
            while True:
                ready = [v for v in waiting if not missing & stage.profile.ancestors(v.parent)]
                for variant in ready[: stage.lanes - len(running)]:
                    waiting.remove(variant)
                    running[lanes.submit(_prepare, stage, variant, makers)] = variant
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    variant = running.pop(future)
                    if (error := future.exception()) is None:
                        missing.discard(variant.name)
                        told = f"made and asked in {future.result():.0f} s"
                    else:
                        told = f"left for later: {error}"
                        if isinstance(error, BrokenProcessPool):  # a maker was killed, and no other can be had
                            waiting.clear()
                    bar.write(f"{stage.name(variant.name)}: {told}")
                    bar.update()
        except BaseException:  # interrupted: half a training is no use to anyone who has left
            for process in multiprocessing.active_children():
                process.kill()
            raise


def _start() -> None:
    """A maker does as the stage does: it ends with it, however that ends."""
    from transformers import logging

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the stage ends it
    stage = multiprocessing.parent_process()

    def end():
        connection.wait([stage.sentinel])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
    logging.set_verbosity_error()  # no bar of its own either


def _prepare(stage, variant, makers) -> float:
    """Seconds that it took."""
    began = time.perf_counter()
    with locked(stage.profile.build / "locks" / stage.name(variant.name)):
        stage.prepare(variant, stage.lanes - 1, make=lambda *about: makers.submit(stage.make, *about).result())
    return time.perf_counter() - began
