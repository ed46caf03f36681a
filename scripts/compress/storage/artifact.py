"""Artifacts: folders that are complete in themselves. Weights, config, tokenizer, and artifact.json, which lists them.

Other files may lie in the same folder (record.json, predictions); they are no part of the artifact.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from compress.config.strict import Strict, explain
from compress.errors import UserError
from compress.files import atomic_path, sha256_file, write_json
from pydantic import ValidationError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class File(Strict):
    bytes: int
    sha256: str


class Artifact(Strict):
    """artifact.json: what the folder holds and how it was built."""

    variant: str
    method: str
    parent: str | None
    backend: str
    parameters: int
    nonzero_parameters: int
    labels: list[str]
    max_length: int
    options: dict  # the variant's entry in the profile
    train_seconds: float | None
    details: dict
    runtime: dict  # how the backend runs it: settings of the engine, or of torch
    files: dict[str, File]

    @property
    def size(self) -> int:
        """Bytes that inference needs besides the tokenizer."""
        return sum(file.bytes for name, file in self.files.items() if name not in TOKENIZER_FILES)

    @property
    def size_with_tokenizer(self) -> int:
        return sum(file.bytes for file in self.files.values())


def embedding_bytes(folder: Path) -> int | None:
    """The bytes of the embeddings in the folder's safetensors file, their LayerNorm included; None if it has none."""
    files = list(folder.glob("*.safetensors"))
    if not files:
        return None
    with open(files[0], "rb") as file:  # its header: 8 bytes of length, then JSON with the place of every tensor
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    places = [entry["data_offsets"] for name, entry in header.items() if ".embeddings." in name]
    return sum(end - begin for begin, end in places) or None


def read_artifact(folder: Path, verify: bool = True) -> Artifact:
    """The checked artifact.json of a folder; raises UserError if a listed file is missing or has changed.

    verify=False checks artifact.json alone and does not hash the listed files.
    """
    path = folder / "artifact.json"
    try:
        artifact = Artifact.model_validate_json(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: no model there (no artifact.json)") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged ({error}); remove {folder} and run make all") from None
    except ValidationError as error:
        raise UserError(explain(path, error)) from error
    remedy = f"remove {folder} and run make all"
    for name, file in artifact.files.items() if verify else ():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing, but artifact.json lists it; {remedy}")
        if (folder / name).stat().st_size != file.bytes or sha256_file(folder / name) != file.sha256:
            raise UserError(f"{folder / name}: damaged or replaced since it was saved; {remedy}")
    return artifact


def save_artifact(folder: Path, write: Callable[[Path], None], tokenizer: Path, **about) -> Artifact:
    """Writes a complete artifact or nothing: `write` puts the model into a new folder, then the tokenizer is added.

    tokenizer: the folder to copy the tokenizer's files from; about: the other fields of Artifact.
    """
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        write(temporary)
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer / name, temporary / name)
        files = {
            str(path.relative_to(temporary)): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        artifact = Artifact.model_validate({**about, "files": files})
        write_json(temporary / "artifact.json", json.loads(artifact.model_dump_json()))
    return artifact
