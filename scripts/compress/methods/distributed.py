"""The processes of one stage, as torchrun starts them: the first decides, makes and writes; the others help it train.

What they tell each other goes through a gloo group of its own: waiting there costs neither CPU nor GPU.
Started any other way there is one process, and everything here is a plain call.
"""

import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

from compress.errors import UserError

PATIENCE = timedelta(days=7)  # while the main process makes and measures what needs no training
GRACE = timedelta(minutes=1)  # for a failure on one process to show on the others


class Apart(UserError):
    """One process failed where others did not: no step that they take together can follow."""


def number() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def number_here() -> int:
    """Those on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", number()))


def is_main() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def start(device: str) -> None:
    """Joins the others, each on a GPU of its own where the device is cuda."""
    if number() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=device == "cpu")
        _group()
        # accelerate calls the CPU of each process cpu:0, cpu:1..., which torch.load does not know: no run would resume.
        torch.serialization.register_package(
            0, lambda _: None, lambda storage, place: storage if place.startswith("cpu:") else None
        )
        if not is_main():
            from transformers import logging

            logging.set_verbosity_error()  # the main process says it


def leave() -> None:
    """Parts from the others in order: a thread of gloo that outlives its interpreter now and then aborts it."""
    if number() > 1:
        from torch import distributed

        distributed.destroy_process_group()


@cache
def _group():
    from torch import distributed

    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def from_main(value=None):
    """The main process's value, on every process; a process waits until the main one calls it, too."""
    if number() == 1:
        return value
    from torch import distributed

    box = [value]
    try:
        distributed.broadcast_object_list(box, src=0, group=_group())
    except RuntimeError:
        if is_main():
            raise
        sys.exit(1)  # the main process is gone, and has said why
    return box[0]


@contextmanager
def main_first():
    """The block runs on the main process and then on the others, which find what the first has written."""
    if not is_main():
        from_main()
    yield
    if is_main():
        from_main()


def together(action: Callable):
    """What action() returns or raises, run by every process; raises Apart if it failed on some and not on others."""
    if number() == 1:
        return action()
    import torch
    from torch import distributed

    result, error = None, None
    try:
        result = action()
    except Exception as caught:
        error = caught
    reason = error and f"{type(error).__name__}: {error}"
    told = [None] * number()
    try:
        # Each process has a patience of its own here, which a barrier would not allow.
        arrived = distributed.all_gather([torch.zeros(1)] * number(), torch.ones(1), group=_group(), async_op=True)
        arrived.wait(GRACE if error else PATIENCE)
        distributed.all_gather_object(told, reason, group=_group())
    except RuntimeError as lost:  # another process never came
        told[distributed.get_rank()] = reason or str(lost)
    failed = [f"process {rank}: {reason}" for rank, reason in enumerate(told) if reason]
    if failed and None in told:
        raise Apart(f"the run ends, since only some of its processes failed: {'; '.join(failed)}") from error
    if error:
        raise error
    return result
