"""Builds one variant: the parent's artifact in, a complete artifact folder and its record.json out.

A variant that fails, or that this machine can't build, gets a record with the reason, and the exit status stays 0: Make
continues with the others, and the last step of `make all` reports the failures. Interrupted trainings resume from their
last checkpoint.
"""

import argparse
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from compress import console
from compress.config.profile import Profile, load_profile
from compress.cpu import peak_rss_bytes
from compress.data.card import FILE as CARD
from compress.data.tasks import splits_for
from compress.engines.pytorch import check_device
from compress.errors import Skip, UserError, disk_is_full, in_words
from compress.files import digest, remove, sha256_file, write_text
from compress.graph.planning import parents_of, sources_of, teacher_files
from compress.methods import distributed
from compress.methods.made import Context, Made, Maker
from compress.provenance import provenance
from compress.storage import record as records
from compress.storage.artifact import Artifact, embedding_bytes, read_artifact, save_artifact
from compress.storage.record import Record, Sizes, read_record, write_record

INPUTS = "inputs.txt"  # in a working folder: the digest of all that the build depends on


@dataclass(frozen=True)
class Job:
    """One variant of one seed on one device, with the data that it learns from."""

    profile: Profile
    variant: object
    seed: int
    device: str
    train_device: str
    splits: object
    labels: list[str]
    fingerprint: str

    @property
    def folder(self) -> Path:
        return self.folder_of(self.variant.name)

    def folder_of(self, name: str) -> Path:
        return self.profile.variant_folder(name, self.seed, self.device)

    @property
    def threads(self) -> int:
        """The profile's choice, not the machine's: another number of threads rounds differently."""
        return self.variant.threads or 1

    @property
    def context(self) -> Context:
        seed_folder = self.profile.seed_folder(self.seed, self.device)
        return Context(
            profile=self.profile,
            seed=self.seed,
            device=self.device,
            train_device=self.train_device,
            threads=max(1, self.threads // distributed.local_world_size()),
            splits=self.splits,
            labels=self.labels,
            parent=self.folder_of(self.variant.parent) if self.variant.parent else None,
            baseline=self.folder_of(self.profile.baseline),
            work=seed_folder / "work" / self.variant.name,
            cache=seed_folder / "cache",
        )


def build(args: argparse.Namespace, makers: dict[str, Maker]) -> int:
    """Builds args.variant with the function of its method; the exit status is 0 if a record was written.

    Of several processes (torchrun) the main one does this; the others only take part in its trainings.
    """
    profile = load_profile(args.profile)
    variant = find(profile, args.variant, makers)
    train_device = args.train_device or args.device
    for device in {args.device, train_device}:
        check_device(device)
    distributed.start(train_device)
    job = Job(profile, variant, args.seed, args.device, train_device, *splits_for(profile, variant, args.seed))
    if not distributed.is_main():
        help_train(job, makers)
        return 0
    name = f"{args.number} {title(variant.name, args.seed, args.device)}".strip()
    log = job.folder.parent / "logs" / f"{variant.name}.log"
    console.log_to(log)
    console.say(f"{name}: started")
    started, known = time.perf_counter(), known_before(job)
    try:
        console.say(f"{name}: {build_or_skip(job, makers, started, known)}")
    except Exception as error:
        if disk_is_full(error):
            raise  # no fault of the variant, and the next one would fail, too
        traceback.print_exc()
        reason = in_words(error)
        write_failure(job, known, "failed", reason, time.perf_counter() - started)
        console.show_tail(log)
        console.say(f"{name}: FAILED: {reason} (log: {log})")
        if isinstance(error, distributed.ProcessesDisagree):
            return 1  # the other processes are in an unknown state
    distributed.broadcast_from_main(None)  # nothing more to train
    distributed.leave()
    return 0


def find(profile: Profile, name: str, makers: dict[str, Maker]):
    """The variant of that name; raises UserError listing those that these makers build."""
    known = {v.name: v for v in profile.everything if v.method in makers}
    if name not in known:
        raise UserError(f"profile {profile.name} has no variant {name!r} for this script; it has: {', '.join(known)}")
    return known[name]


def title(variant: str, seed: int, device: str) -> str:
    """The variant's name in messages; seed and device where they are not the default."""
    return variant + (f" seed {seed}" if seed else "") + (f" {device}" if device != "cpu" else "")


def build_or_skip(job: Job, makers: dict[str, Maker], started: float, known: dict) -> str:
    """Builds the variant, or records why it is skipped; returns the message for the console."""
    try:
        check_buildable(job)
        known = known | {"parents": hashes_of_parents(job)}
        record = save_build(job, run_method(job, makers[job.variant.method]), started, known)
    except Skip as skip:
        remove(job.context.work)
        write_failure(job, known, "skipped", str(skip), time.perf_counter() - started)
        return f"skipped: {skip}"
    return f"built in {record.build_seconds:.0f} s, {record.sizes.bytes / 1e6:.2f} MB"


def check_buildable(job: Job) -> None:
    """Raises Skip if the device rules the method out or a parent has no model, UserError if a parent is damaged."""
    if job.device != "cpu" and job.variant.cpu_only:
        raise Skip(f"not on {job.device}: {job.variant.cpu_only}")
    for name in parents_of(job.profile, job.variant):
        folder = job.folder_of(name)
        record = read_record(folder)
        if record.status != "ok":
            raise Skip(f"its parent {name} was {record.status}: {record.reason}")
        try:
            read_artifact(folder)  # verifies the weights: a child of damaged ones would be wrong without a sign
        except UserError:
            remove(folder / records.FILE)  # so that the next run builds the parent again
            raise


def run_method(job: Job, maker: Maker) -> Made:
    """Runs the method; of several processes each one runs it, with its share of the threads."""
    context = job.context
    clear_if_changed(job, context)
    torch.set_num_threads(context.threads)
    if not job.variant.has_training:
        return maker(job.variant, context)
    distributed.broadcast_from_main(job.variant.name)
    return distributed.run_in_all_processes(lambda: maker(job.variant, context))


def help_train(job: Job, makers: dict[str, Maker]) -> None:
    """The part of the other processes: they run the method whenever the main one starts it."""
    torch.set_num_threads(job.context.threads)
    while distributed.broadcast_from_main() is not None:
        try:
            distributed.run_in_all_processes(lambda: makers[job.variant.method](job.variant, job.context))
        except distributed.ProcessesDisagree:
            raise
        except Exception:
            traceback.print_exc()  # the main process fails likewise and records it
    distributed.leave()


def hashes_of_parents(job: Job) -> dict[str, str]:
    """SHA-256 of artifact.json by name of each model that the build reads."""
    return {name: sha256_file(job.folder_of(name) / "artifact.json") for name in parents_of(job.profile, job.variant)}


def clear_if_changed(job: Job, context: Context) -> None:
    """Empties the working folder unless its checkpoints come from exactly these inputs and this code."""
    profile = job.profile
    known = job.seed, job.train_device, context.threads, job.fingerprint
    hashes = list(hashes_of_parents(job).values())
    inputs = digest([job.variant.recipe, profile.teacher, profile.data.max_length, *known, hashes])
    path = context.work / INPUTS
    data = profile.data_folder(job.seed) / CARD  # newer than the encoder's files
    read = [data, *sources_of(job.variant), *teacher_files(profile, job.variant, job.seed)]
    newest = max(file.stat().st_mtime for file in read)
    if not (path.exists() and path.read_text("utf-8") == inputs and path.stat().st_mtime >= newest):
        remove(context.work)
        write_text(path, inputs)


def save_build(job: Job, result: Made, started: float, known: dict) -> Record:
    """Writes the artifact folder and, last, its record; removes the working folder.

    known: the fields of known_before(), and the record's parents.
    """
    context = job.context
    artifact = save_artifact(
        job.folder,
        result.write,
        tokenizer=result.tokenizer or context.parent or job.profile.backbone_folder,
        variant=job.variant.name,
        method=job.variant.method,
        parent=job.variant.parent,
        backend=result.backend,
        parameters=result.parameters,
        nonzero_parameters=result.nonzero_parameters,
        labels=job.labels,
        max_length=job.profile.data.max_length,
        options=job.variant.model_dump(mode="json"),
        train_seconds=result.train_seconds,
        details=result.details,
        runtime=result.runtime,
    )
    # The training's clock also counts the time of interrupted runs.
    seconds = max(time.perf_counter() - started, artifact.train_seconds or 0.0)
    effort = {"build_seconds": seconds, "build_peak_bytes": peak_rss_bytes()}
    record = Record(**known, **facts_of(artifact, job.folder), status="ok", **effort)
    write_record(job.folder, record)
    remove(context.work)
    return record


def facts_of(artifact: Artifact, folder: Path) -> dict:
    """The fields of a record that an artifact determines."""
    return {
        "backend": artifact.backend,
        "train_seconds": artifact.train_seconds,
        "details": artifact.details,
        "sizes": Sizes(
            bytes=artifact.size,
            bytes_with_tokenizer=artifact.size_with_tokenizer,
            parameters=artifact.parameters,
            nonzero_parameters=artifact.nonzero_parameters,
            embedding_bytes=embedding_bytes(folder),
        ),
        "artifact_sha256": sha256_file(folder / "artifact.json"),
    }


def write_failure(job: Job, known: dict, status: str, reason: str, seconds: float) -> None:
    """Replaces the variant's folder by one that holds only the record of a skipped or failed build."""
    remove(job.folder)
    record = Record(**known, backend=None, status=status, reason=reason, build_seconds=seconds, details={})
    write_record(job.folder, record)


def known_before(job: Job) -> dict:
    """The fields of a record that are known before the build; the code may change while it runs."""
    variant = job.variant
    fields = ("chapter", "family", "scope", "method", "parent")
    return {field: getattr(variant, field) for field in fields} | {
        "variant": variant.name,
        "device": job.device,
        "seed": job.seed,
        "trained": job.profile.is_trained(variant),
        "data_fingerprint": job.fingerprint,
        "build_threads": job.threads,
        "options": variant.model_dump(mode="json"),
        "provenance": provenance(job.seed, job.threads, job.train_device),
    }
