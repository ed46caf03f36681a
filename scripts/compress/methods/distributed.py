"""Several processes of one training, as torchrun starts them: the main one builds and writes, the others only train.

The processes exchange messages in a gloo group of their own: waiting there uses neither CPU nor GPU. Without torchrun
there is one process, and every function here is a plain call.
"""

import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

import torch
from accelerate import PartialState
from compress.errors import UserError
from torch import distributed
from transformers.utils import logging

WAIT_LIMIT = timedelta(days=7)  # while the main process does what needs no training
FAILURE_WAIT = timedelta(minutes=1)  # for a failure in one process to show in the others


class ProcessesDisagree(UserError):
    """Some processes failed and others did not: they can't take another step together."""


def world_size() -> int:
    """Processes on all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_world_size() -> int:
    """Processes on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def is_main() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def start(device: str) -> None:
    """Connects the processes; with device cuda each gets a GPU of its own."""
    if world_size() > 1:
        PartialState(cpu=device == "cpu")
        _group()
        # accelerate names the CPU of each process cpu:0, cpu:1..., which torch.load rejects: no run could resume.
        torch.serialization.register_package(
            0, lambda _: None, lambda storage, place: storage if place.startswith("cpu:") else None
        )
        if not is_main():
            logging.set_verbosity_error()  # the main process shows the messages


def leave() -> None:
    """Disconnects the processes: a gloo thread that outlives its interpreter sometimes aborts it."""
    if world_size() > 1:
        distributed.destroy_process_group()


@cache
def _group():
    return distributed.new_group(backend="gloo", timeout=WAIT_LIMIT)


def broadcast_from_main(value=None):
    """The main process's value, in every process; the others wait until the main process calls this."""
    if world_size() == 1:
        return value
    box = [value]
    try:
        distributed.broadcast_object_list(box, src=0, group=_group())
    except RuntimeError:
        if is_main():
            raise
        sys.exit(1)  # the main process has ended and has reported why
    return box[0]


@contextmanager
def main_first():
    """Runs the block in the main process first, then in the others, which can read what the main process wrote."""
    if not is_main():
        broadcast_from_main()
    yield
    if is_main():
        broadcast_from_main()


def run_in_all_processes(action: Callable):
    """The result or exception of action() in every process.

    Raises ProcessesDisagree if it failed in some and not in others.
    """
    if world_size() == 1:
        return action()
    result, error = None, None
    try:
        result = action()
    except Exception as caught:
        error = caught
    reason = error and f"{type(error).__name__}: {error}"
    reasons = [None] * world_size()
    try:
        # Each process has its own time limit here, which a barrier would not allow.
        arrived = distributed.all_gather([torch.zeros(1)] * world_size(), torch.ones(1), group=_group(), async_op=True)
        arrived.wait(FAILURE_WAIT if error else WAIT_LIMIT)
        distributed.all_gather_object(reasons, reason, group=_group())
    except RuntimeError as lost:  # another process has ended
        reasons[distributed.get_rank()] = reason or str(lost)
    failed = [f"process {rank}: {reason}" for rank, reason in enumerate(reasons) if reason]
    if failed and None in reasons:
        raise ProcessesDisagree(
            f"the run ends, because only some of its processes failed: {'; '.join(failed)}"
        ) from error
    if error:
        raise error
    return result
