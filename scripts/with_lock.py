"""Runs a command while holding a lock file; a second run names the process that holds it and stops with status 75.

Uses the standard library alone, because it runs before the environment exists.
Example: python3 scripts/with_lock.py build/.lock make all
"""

import fcntl
import os
import sys


def main(path: str, *command: str) -> None:
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        sys.exit(f"error: can't lock this clone: {error}")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode() or "?"
        print(f"another run (process {holder}) is at work in this clone; wait for it or stop it", file=sys.stderr)
        sys.exit(75)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
    except OSError as error:  # a full disk
        sys.exit(f"error: can't lock this clone: {error}; free some space and run the same command again")
    # The lock lives as long as the command and what it starts keep the descriptor open.
    os.set_inheritable(descriptor, True)
    os.execvp(command[0], command)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
