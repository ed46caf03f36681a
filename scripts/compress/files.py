"""Files that are complete or absent: atomic writes, hashes, locks."""

import fcntl
import hashlib
import io
import json
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from compress.errors import UserError

BEGAN = time.time()  # when this process read its code


def date_to_start(path: Path) -> None:
    """Dates a finished file to the start of this process: code or data that changed meanwhile then make it stale."""
    os.utime(path, (BEGAN, BEGAN))


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value) -> str:
    """SHA-256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def atomic_path(path: Path):
    """A temporary neighbour of `path` (file or folder) that replaces it when the block succeeds.

    It gets the permissions of any new file: safetensors writes files that only their owner can read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    remove(temporary)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        for written in (temporary, *temporary.rglob("*")):
            written.chmod((0o777 if written.is_dir() else 0o666) & ~umask)
        if temporary.is_dir():
            remove(path)  # a folder cannot be renamed onto a filled one
        elif temporary.is_file():
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        remove(temporary)


@contextmanager
def locked(path: Path):
    """Holds the lock file `path` for the block; other processes wait. The kernel frees it if the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An uncompressed .npz, written atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of an .npz without pickles; raises UserError naming the file if it is missing or damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run make all to measure it") from None
    except (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}); remove it and run make all again") from None
