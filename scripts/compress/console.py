"""The console and the log files: one line per event for the user, everything else in a log file per variant."""

import os
import sys
from pathlib import Path

TAIL_LINES = 20  # of the log, shown when a variant fails

_console = None  # the terminal, while the output goes to a log file


def say(text: str) -> None:
    """Writes one line to the console, also while the output of this process goes to a log file."""
    print(text, file=_console or sys.stdout, flush=True)


def log_to(path: Path) -> None:
    """Sends standard output and standard error of this process, C libraries included, to the file `path`."""
    global _console
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    _console = os.fdopen(os.dup(1), "w", encoding="utf-8")
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def show_tail(path: Path) -> None:
    """Writes the last lines of a log file to the console."""
    sys.stdout.flush()
    sys.stderr.flush()
    for line in path.read_text("utf-8", errors="replace").splitlines()[-TAIL_LINES:]:
        say(f"    {line}")
