"""record.json: how the build of a variant ended. It is written last, and its hash shows if it was edited."""

import json
from pathlib import Path
from typing import Literal

from compress.config.strict import Strict, explain
from compress.errors import UserError
from compress.files import date_to_start, digest, write_json
from pydantic import Field, ValidationError, model_validator

FILE = "record.json"


class Machine(Strict):
    system: str
    architecture: str
    cpu: str
    cpu_family_model: str
    cpu_flags: list[str]
    cores: int
    memory_gb: float
    gpu: str | None


class Provenance(Strict):
    command: list[str]
    commit: str | None
    dirty: bool | None  # None: unknown, without git
    machine: Machine
    libraries: dict[str, str | None]  # None: not installed
    python: str
    seed: int
    threads: int  # of all training processes of a machine together
    processes: int  # that trained together


class Sizes(Strict):
    bytes: int = Field(gt=0)
    bytes_with_tokenizer: int = Field(gt=0)
    parameters: int = Field(gt=0)
    nonzero_parameters: int
    embedding_bytes: int | None = None  # of all tables, as they are stored; None where that is no safetensors file


class Record(Strict):
    variant: str
    chapter: str
    family: str
    scope: str
    method: str
    parent: str | None
    backend: str | None
    device: str
    trained: bool
    seed: int
    status: Literal["ok", "skipped", "failed"]
    reason: str = ""
    data_fingerprint: str
    train_seconds: float | None = None
    build_seconds: float  # training included
    build_threads: int
    build_peak_bytes: int | None = None  # resident memory of the build's process; of several, of the main one
    options: dict  # the variant's entry in the profile
    parents: dict[str, str] = Field(default_factory=dict)  # artifact_sha256 of each model that the build read
    details: dict  # of the method, for example a sensitivity table
    sizes: Sizes | None = None
    artifact_sha256: str | None = None  # of artifact.json
    provenance: Provenance

    @model_validator(mode="after")
    def status_fits(self):
        if self.status == "ok" and not (self.sizes and self.artifact_sha256):
            raise ValueError("a record with status ok needs sizes and artifact_sha256")
        if self.status != "ok" and not self.reason:
            raise ValueError(f"a record with status {self.status} needs a reason")
        return self


def write_record(folder: Path, record: Record) -> None:
    content = json.loads(record.model_dump_json())
    write_json(folder / FILE, {"record": content, "sha256": digest(content)})
    date_to_start(folder / FILE)


def read_record(folder: Path) -> Record:
    """The record of a variant's folder; raises UserError naming the file if it is missing, damaged or altered."""
    path = folder / FILE
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such record; run make all") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged record ({error}); remove it and run make all again") from None
    return parse_record(text, str(path))


def parse_record(text: str, source: str) -> Record:
    """The record in the text of a record.json; raises UserError naming `source`."""
    try:
        content, seal = (json.loads(text)[key] for key in ("record", "sha256"))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{source}: damaged or truncated record ({error}); remove it and run make all again") from None
    if digest(content) != seal:
        raise UserError(f"{source}: the record was altered after it was written; remove it and run make all again")
    try:
        # JSON mode: strict types, but a whole number may stand for a float
        return Record.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise UserError(explain(source, error)) from error
