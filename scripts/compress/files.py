"""Files that are whole or not there: atomic writes, hashes, and hashes of source code."""

import ast
import fcntl
import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from compress.paths import SCRIPTS


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value) -> str:
    """SHA-256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def atomic_path(path: Path):
    """A temporary neighbour of `path` (file or folder) that takes its place when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    remove(temporary)
    try:
        yield temporary
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
    """Holds the lock file `path` for the block; another process that wants it waits for as long.

    So do processes of other machines, where a shared file system has locks. A killed process holds none.
    """
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


def source_hash(path: Path, function: str | None = None, without: tuple[str, ...] = ()) -> str:
    """Hash of a Python source and of every module of this repository that it imports, however deep.

    With `function`, only that function of the source counts, with the functions and constants beside it that it uses.
    `without` names modules (compress/stage.py) that are left out with what they alone import.
    Comments, docstrings and layout do not count: rewording a sentence must not retrain a model.
    """
    seen: dict[str, str] = {}
    todo = [path.resolve()]
    while todo:
        path = todo.pop()
        name = str(path.relative_to(SCRIPTS))
        if name in seen or name in without:
            continue
        tree = ast.parse(path.read_text("utf-8"), str(path))
        if function is not None and not seen:
            tree.body = _used_definitions(tree, function)
        for node in ast.walk(tree):
            todo += _local_imports(node)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        seen[name] = ast.unparse(tree)
    return digest(seen)


def _used_definitions(tree: ast.Module, function: str) -> list[ast.stmt]:
    """The function of that name and every other definition or constant of the module that it names, directly or not."""
    definitions = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            definitions |= {
                name.id: node for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)
            }
    used, todo = set(), [function]
    while todo:
        name = todo.pop()
        if name in definitions and name not in used:
            used.add(name)
            todo += [node.id for node in ast.walk(definitions[name]) if isinstance(node, ast.Name)]
    return [node for node in tree.body if any(node is definitions[name] for name in used)]


def _local_imports(node: ast.AST) -> list[Path]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return []
    files = [SCRIPTS / (name.replace(".", "/") + ".py") for name in names]
    return [file for file in files if file.is_file()]
