"""Records: one JSON file per variant, seed and device, written last, sealed, and refused when it was altered."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
from compress.config.profile import Profile, Strict, explain
from compress.errors import UserError
from compress.files import digest, sha256_file, write_json
from pydantic import Field, ValidationError, model_validator


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
    dirty: bool | None  # None: no git there to tell
    machine: Machine
    libraries: dict[str, str | None]  # None: not installed
    python: str
    seed: int
    threads: int  # of all processes of a machine together
    processes: int  # that trained together


class Sizes(Strict):
    bytes: int = Field(gt=0)
    bytes_with_tokenizer: int = Field(gt=0)
    parameters: int = Field(gt=0)
    nonzero_parameters: int


class Measured(Strict):
    """What the fresh process said beside its arrays; the arrays are predictions/<run>.npz, named by hash."""

    predictions_sha256: str
    peak_rss_bytes: int
    load_seconds: float
    threads: int
    baseline_threads: int
    precision: str
    batch_invariant: bool  # the same logits alone and in a batch; only then batches stand in for single sentences
    batch_size: int | None = None  # from here on: None where the variant was not timed
    baseline_batch_size: int | None = None
    throughput_sentences: int | None = None


class Record(Strict):
    version: Literal[1] = 1
    run: str
    variant: str
    chapter: str
    method: str
    parent: str | None
    backend: str | None
    device: str
    trained: bool
    seed: int
    status: Literal["ok", "skipped", "failed"]
    reason: str = ""
    key: str | None  # of the artifact
    measure_key: str | None  # of the artifact, the baseline, the protocol's code and budgets, and the threads
    data_fingerprint: str
    train_seconds: float | None = None
    seconds: float  # that making and measuring took
    details: dict  # what the maker found out: a sensitivity table, the heads that stayed
    sizes: Sizes | None = None
    measured: Measured | None = None
    provenance: Provenance

    @model_validator(mode="after")
    def status_fits(self):
        if self.status == "ok" and not (self.key and self.measure_key and self.sizes and self.measured):
            raise ValueError("a record with status ok needs key, measure_key, sizes and measured")
        if self.status != "ok" and not self.reason:
            raise ValueError(f"a record with status {self.status} needs a reason")
        return self


def write_record(path: Path, record: Record) -> None:
    content = json.loads(record.model_dump_json())
    write_json(path, {"record": content, "sha256": digest(content)})


def read_record(path: Path) -> Record:
    """The checked record; raises UserError naming the file when it is missing, truncated, altered or invalid."""
    try:
        sealed = json.loads(path.read_text("utf-8"))
        content, seal = sealed["record"], sealed["sha256"]
    except FileNotFoundError:
        raise UserError(f"{path}: no such record") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: corrupt or truncated record ({error}); remove it and run its stage again") from None
    if digest(content) != seal:
        raise UserError(f"{path}: the record was altered after it was written; remove it and run its stage again")
    try:
        # JSON mode: strict types, but a whole number may stand for a float
        return Record.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise UserError(explain(path, error)) from error


def read_arrays(profile: Profile, record: Record) -> dict[str, np.ndarray]:
    """The raw logits and times behind a record; raises UserError unless they are the very file it names."""
    path = profile.predictions(record.run)
    check_arrays(path, record)
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def check_arrays(path: Path, record: Record) -> None:
    if not path.exists() or sha256_file(path) != record.measured.predictions_sha256:
        raise UserError(f"{path}: missing, or not the file that the record of {record.run} names; run its stage again")


def speedup(seconds: np.ndarray) -> float:
    """How many times faster than the baseline: the median ratio of paired times [pairs, (variant, baseline)]."""
    return float(np.median(seconds[:, 1] / seconds[:, 0]))
