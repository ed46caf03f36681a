"""One stage: make each of its variants that is not there yet, ask it, time it, write its record last.

Making and asking want processors, and go side by side (compress.lanes); timing wants a quiet machine, and comes after.
"""

import json
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from compress import forked, lanes
from compress.cli import disk_is_full
from compress.config.profile import Profile, Variant, load_profile, run_name
from compress.data.prepare import load_card, load_splits
from compress.engines.predictor import BACKENDS
from compress.errors import Skip, UserError
from compress.files import atomic_path, digest, locked, remove, sha256_file, source_hash
from compress.measure import protocol as measuring
from compress.methods import distributed as processes
from compress.metrics import quality
from compress.provenance import provenance
from compress.results.reading import DISTURBED
from compress.results.selection import first_choice, measured_records
from compress.storage.artifact import Artifact, read_artifact, save_artifact
from compress.storage.record import Measured, Record, Sizes, read_arrays, read_record, write_record

MOST_LANES = 4  # each holds a model, its gradients and its optimizer's moments
TRIES = 3  # to time a variant while nothing else has the machine
KEY_DIGITS = 12  # of a variant's key, in the name of its working folder
ANSWERS = ("about", "answer_key", "answer_seconds")  # arrays beside logits that no timing changes
# Code around the makers: it decides what runs and what is written down, not what a model becomes.
HARNESS = tuple(f"compress/{name}.py" for name in ("stage", "cli", "profile", "predict", "processes", "lanes"))


@dataclass(frozen=True)
class Made:
    """What a maker hands over: how to write the model's files, and facts that the files don't tell."""

    write: Callable[[Path], None]
    parameters: int
    nonzero_parameters: int
    backend: str = "torch"
    train_seconds: float | None = None
    details: dict = field(default_factory=dict)  # what a reader should know of its making, JSON
    runtime: dict = field(default_factory=dict)  # how the backend is to run it; see compress.predict
    tokenizer: Path | None = None  # a folder with its own tokenizer; else the parent's


def made(model, write: Callable[[Path], None], **about) -> Made:
    """A Made that counts the parameters of a torch model with float weights; UserError if one is no number."""
    weights = list(model.parameters())
    if broken := [name for name, weight in model.named_parameters() if not weight.isfinite().all()]:
        raise UserError(f"not finite: {', '.join(broken[:3])} ({len(broken)} of {len(weights)} tensors)")
    return Made(write, sum(w.numel() for w in weights), sum(int(w.count_nonzero()) for w in weights), **about)


def in_torch(backend: str) -> bool:
    return BACKENDS[backend][0] == "torch"


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


@dataclass(frozen=True)
class Context:
    """What a maker may use: the profile, its data, folders of parent and teacher, for checkpoints and for caching."""

    profile: Profile
    seed: int
    device: str  # of measuring
    train_device: str
    threads: int
    splits: object
    labels: list[str]
    parent: Path | None
    teacher: Path  # the baseline
    work: Path
    cache: Path


Maker = Callable[[Variant, Context], Made]


class Stage:
    def __init__(self, script: str, makers: dict[str, Maker], profile: Profile, args):
        self.script, self.makers, self.profile = Path(script), makers, profile
        self.seed, self.device, self.threads = args.seed, args.device, args.threads
        self.train_device = args.train_device or args.device
        self.card = load_card(profile)
        self.handover = np.inf  # seconds between near cores, see compress.measure.Cores; the least that a variant found
        # A maker's own code, not the whole script's: mending one method must not retrain the others.
        self.sources = {m: source_hash(self.script, f.__name__, without=HARNESS) for m, f in makers.items()}
        # Not the profile's schema: what it says of a variant is in the key already.
        self.answer_source, self.timing_source = (
            source_hash(Path(measuring.__file__), function.__name__, without=("compress/profile.py",))
            for function in (measuring.answers, measuring.timings)
        )

    @cached_property
    def splits(self):
        return load_splits(self.profile)

    @cached_property
    def lanes(self) -> int:
        """How many variants are made and asked side by side, each with its share of the threads.

        Two of a thread each get half as much again done as one of two threads; but a lone training gets all of them. It
        depends on the whole stage, not on what of it is left: another number of threads is another rounding.
        """
        if {self.device, self.train_device} != {"cpu"} or processes.number() > 1:
            return 1
        variants = [variant for variant in self.profile.variants if variant.method in self.makers]
        trained = sum(variant.has_training for variant in variants)
        return max(1, min(MOST_LANES, self.threads, trained or len(variants)))

    @property
    def share(self) -> int:
        """Threads of whatever is made or asked."""
        return max(1, self.threads // self.lanes)

    def run(self, only: list[str] | None = None) -> int:
        """Makes and measures; returns the number of failed variants, so that the exit status tells."""
        variants = [v for v in self.profile.variants if v.method in self.makers]
        if only is not None:
            names = [v.name for v in variants]
            if unknown := [name for name in only if name not in names]:
                known = f"profile {self.profile.name}: {', '.join(names)}"
                raise UserError(f"--only: this stage has no variant {unknown[0]!r} in {known}")
            needed = {self.profile.baseline}.union(*map(self.profile.ancestors, only))
            variants = [v for v in variants if v.name in needed]
        return self.run_all(variants)

    def run_all(self, variants) -> int:
        """The same for these variants in this order."""
        if self.lanes > 1:
            lanes.prepare(self, variants)
        failed = 0
        for variant in variants:
            # Another stage process beside this one makes it, or finds it up to date; never both make it.
            with locked(self.profile.build / "locks" / self.name(variant.name)):
                failed += not self.run_one(variant)
        return failed

    def run_one(self, variant: Variant) -> bool:
        """False if the variant failed."""
        run = self.name(variant.name)
        if self.is_done(variant):
            print(f"{run}: up to date", flush=True)
            return True
        started = time.perf_counter()
        try:
            self.prepare(variant)
            record = self.measure(variant)
            print(f"{run}: done in {record.seconds:.0f} s, {self.summary(record)}", flush=True)
        except Skip as skip:
            self.write(variant, time.perf_counter() - started, status="skipped", reason=str(skip))
            print(f"{run}: skipped: {skip}", flush=True)
        except Exception as error:
            if disk_is_full(error):
                raise  # no fault of the variant, and the next would fail, too
            if not isinstance(error, UserError):
                traceback.print_exc()
            seconds = time.perf_counter() - started
            self.write(variant, seconds, status="failed", reason=f"{type(error).__name__}: {error}")
            print(f"{run}: FAILED: {error}", file=sys.stderr, flush=True)
            if isinstance(error, processes.Apart):
                raise
            return False
        return True

    def help(self) -> None:
        """What the processes beside the main one do: take part in each training that it announces, to the last."""
        variants = {variant.name: variant for variant in self.profile.variants}
        while (name := processes.from_main()) is not None:
            try:
                self.train_together(variants[name])
            except processes.Apart:
                raise
            except Exception:
                continue  # the main process failed likewise: it tells and records it

    def name(self, variant: str) -> str:
        return run_name(variant, self.seed, self.device)

    def key(self, variant: Variant) -> str:
        """Identity of an artifact: everything that its making depends on."""
        # Whatever has a parent may have learned from the baseline, too.
        parents = [variant.parent, self.profile.baseline] if variant.parent else []
        made_from = [read_artifact(self.folder(name), verify=False).key for name in parents]
        options = variant.model_dump(mode="json", exclude={"timed"})
        source = self.sources[variant.method]
        if variant.method == "champion":
            made_from += self.choice(variant)
        about = [
            options, self.seed, self.train_device, self.card["fingerprint"], self.card["backbone"], made_from, source
        ]  # fmt: skip
        # What neither the sentences nor the backbone's source tell; nothing where it is the default.
        settings = self.profile.data.model_dump(include={"max_length"}, exclude_defaults=True)
        settings |= self.profile.backbone.model_dump(include={"random_config"}, exclude_defaults=True)
        return digest([*about, settings] if settings else about)

    def choice(self, champion: Variant) -> list[str]:
        """Hashes of what a champion is chosen from: every rival's answers; for a further seed, the chosen model."""
        if self.seed == 0:
            rivals = measured_records(self.profile, champion.name, self.device)
            return [record.measured.predictions_sha256 for of_seeds in rivals.values() for record in of_seeds]
        chosen = first_choice(self.profile, champion.name, self.device)
        return [read_artifact(self.folder(chosen), verify=False).key]

    def skip_key(self, variant: Variant) -> str | None:
        """The key of a variant that was not made: None where its parent was not made, either."""
        try:
            return self.key(variant)
        except UserError:
            return None

    def answer_key(self, key: str) -> str:
        """Identity of an artifact's answers, which neither the baseline nor the threads change."""
        return digest([key, self.answer_source])

    def measure_key(self, variant: Variant, key: str) -> str:
        """Identity of a measurement: of its answers, and of its times if it has any."""
        if not self.is_timed(variant):
            return self.answer_key(key)
        baseline = read_artifact(self.folder(self.profile.baseline), verify=False).key
        budgets = self.profile.measure.model_dump(mode="json", exclude={"shapes"})
        shapes = self.profile.measure.shapes.model_dump(mode="json") if self.is_shaped(variant) else None
        return digest([self.answer_key(key), baseline, budgets, shapes, self.threads, self.timing_source])

    def is_timed(self, variant: Variant) -> bool:
        """Times come from the first seed: another seed's model has the same shape and arithmetic."""
        return variant.timed and self.seed == 0

    def is_shaped(self, variant: Variant) -> bool:
        return self.is_timed(variant) and variant.name in self.profile.measure.shapes.variants

    def folder(self, variant: str) -> Path:
        return self.profile.model(self.name(variant))

    def is_made(self, variant: Variant, verify: bool = True) -> bool:
        try:
            artifact = read_artifact(self.folder(variant.name), verify)
            return artifact.key == self.key(variant) and artifact.labels == self.card["labels"]
        except UserError:
            return False

    def is_done(self, variant: Variant) -> bool:
        """True if a valid record of exactly this artifact, baseline and protocol is there; never for a failed one.

        Nor for one that was timed while something else had the machine.
        Nor for a skipped one, unless the device is what speaks against it: a library may have been installed since.
        """
        try:
            record = read_record(self.profile.record(self.name(variant.name)))
            if record.status == "skipped":
                return self.device != "cpu" and bool(variant.cpu_only) and record.key == self.skip_key(variant)
            key = self.key(variant)
            if record.status == "failed" or not self.is_made(variant):
                return False
            predictions = self.profile.predictions(record.run)
            same_arrays = predictions.exists() and sha256_file(predictions) == record.measured.predictions_sha256
            if not same_arrays or record.measure_key != self.measure_key(variant, key):
                return False
            if not self.is_timed(variant):
                return True
            with np.load(predictions, allow_pickle=False) as arrays:
                return self.slower_than_usual(variant, arrays) < DISTURBED
        except UserError:
            return False

    def prepare(self, variant: Variant, beside: int = 0, make: Callable | None = None) -> None:
        """Makes (or has `make` do it) and asks the variant, unless that is done; `beside` others at the same time."""
        (make or self.make)(variant, beside)
        if not self.is_prepared(variant):
            self.ask(variant, beside)

    def is_prepared(self, variant: Variant) -> bool:
        """Whether a variant that is made needs no other process before it is timed.

        One that is compiled whenever it starts answers in the process that times it: each would take half a minute.
        """
        compiled = read_artifact(self.folder(variant.name), verify=False).runtime.get("compile")
        return (compiled and self.is_timed(variant)) or self.asked(variant) is not None

    def make(self, variant: Variant, beside: int = 0) -> None:
        if self.device != "cpu" and variant.cpu_only:
            raise Skip(f"not on {self.device}: {variant.cpu_only}")
        if self.is_made(variant):
            return
        import torch

        torch.set_num_threads(self.share)
        profile = self.profile
        context = self.context(variant)
        if variant.parent:
            for folder in {context.parent, context.teacher}:
                read_artifact(folder)  # damaged or swapped weights would be learned from
        began = time.perf_counter()
        if not variant.has_training:
            made = self.makers[variant.method](variant, context)
        else:
            processes.from_main(variant.name)
            made = self.train_together(variant)
        # Training tells its own, those of a run that was killed among them.
        seconds = max(0.0, time.perf_counter() - began - (made.train_seconds or 0.0))
        save_artifact(
            self.folder(variant.name),
            made.write,
            tokenizer=made.tokenizer or context.parent or profile.backbone_folder,
            variant=variant.name,
            method=variant.method,
            parent=variant.parent,
            backend=made.backend,
            parameters=made.parameters,
            nonzero_parameters=made.nonzero_parameters,
            labels=self.card["labels"],
            max_length=profile.data.max_length,
            options=variant.model_dump(mode="json"),
            key=self.key(variant),
            train_seconds=made.train_seconds,
            details=made.details | {"making_seconds": seconds / (1 + beside)},
            runtime=made.runtime,
        )
        # Of this run alone: other variants' and seeds' names begin alike, and they may be in training beside this one.
        for old in context.work.parent.glob(self.name(variant.name) + "-" + KEY_DIGITS * "[0-9a-f]"):
            remove(old)

    def context(self, variant: Variant) -> Context:
        profile = self.profile
        return Context(
            profile=profile,
            seed=self.seed,
            device=self.device,
            train_device=self.train_device,
            threads=self.threads,
            splits=self.splits,
            labels=self.card["labels"],
            parent=self.folder(variant.parent) if variant.parent else None,
            teacher=self.folder(profile.baseline),
            work=profile.build / "checkpoints" / f"{self.name(variant.name)}-{self.key(variant)[:KEY_DIGITS]}",
            cache=profile.build / "cache",
        )

    def train_together(self, variant: Variant) -> Made:
        """Runs the maker on every process, each with its share of the threads."""
        import torch

        threads = max(1, self.share // processes.number_here())
        context = replace(self.context(variant), threads=threads)
        torch.set_num_threads(context.threads)
        made = processes.together(lambda: self.makers[variant.method](variant, context))
        return replace(made, details=made.details | {"training_threads": threads})

    def pending(self, variant: Variant) -> Path:
        """Where answers wait for their record."""
        return self.profile.build / "answers" / f"{self.name(variant.name)}.npz"

    def asked(self, variant: Variant) -> dict[str, np.ndarray] | None:
        """What exactly this artifact has answered: just now, or for a record whose times are of no use any more."""
        key = self.answer_key(read_artifact(self.folder(variant.name), verify=False).key)
        for read in (self.read_pending, self.read_recorded):
            arrays = read(variant)
            if str(arrays.get("answer_key")) == key:
                return {name: array for name, array in arrays.items() if name.startswith("logits") or name in ANSWERS}
        return None

    def read_pending(self, variant: Variant) -> dict[str, np.ndarray]:
        try:
            with np.load(self.pending(variant), allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, EOFError, ValueError, zipfile.BadZipFile):
            return {}

    def read_recorded(self, variant: Variant) -> dict[str, np.ndarray]:
        try:
            record = read_record(self.profile.record(self.name(variant.name)))
            return read_arrays(self.profile, record) if record.status == "ok" else {}
        except UserError:
            return {}

    def ask(self, variant: Variant, beside: int) -> None:
        """Has the variant answer all that it is asked, and keeps that until its record is written."""
        began = time.perf_counter()
        artifact = read_artifact(self.folder(variant.name))
        job = measuring.Questions(
            variant=str(self.folder(variant.name)), device=self.device, threads=self.share, texts=self.questions()
        )
        # An engine starts sooner by itself than a fork with PyTorch would, and a fork hides what memory PyTorch takes:
        # of a timed variant the other process tells that, and of another seed nobody wants to know.
        fork = in_torch(artifact.backend) and (self.is_timed(variant) or self.seed != 0)
        arrays = self.answered(artifact, (forked if fork else measuring).measure(job))
        arrays["answer_seconds"] = np.array((time.perf_counter() - began) / (1 + beside))
        write_arrays(self.pending(variant), arrays)

    def questions(self) -> dict[str, list[str]]:
        return {name: split["text"][:] for name, split in self.splits.items() if name not in ("train", "unlabelled")}

    def answered(self, artifact: Artifact, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays with the key of their answers; raises UserError if an answer is no number."""
        if broken := [name for name in arrays if name.startswith("logits") and not np.isfinite(arrays[name]).all()]:
            raise UserError(f"its answers are not numbers: {', '.join(broken)}")
        return arrays | {"answer_key": np.array(self.answer_key(artifact.key))}

    def measure(self, variant: Variant) -> Record:
        """Times the variant, if it is to be, and writes down all that was found."""
        artifact, arrays = read_artifact(self.folder(variant.name)), self.asked(variant)
        began = time.perf_counter()
        if arrays is None:
            arrays = self.answered(artifact, self.timed(variant, artifact, self.questions()))
            arrays["answer_seconds"] = np.array(0.0)  # they are among those of its times
        elif self.is_timed(variant):
            arrays |= self.timed(variant, artifact)
        output = self.profile.predictions(self.name(variant.name))
        write_arrays(output, arrays)
        about, timed_about = (json.loads(str(arrays.get(name, "{}"))) for name in ("about", "timed_about"))
        if not in_torch(artifact.backend):
            timed_about.pop("peak_rss_bytes", None)  # of a fork; the process that answered had the engine alone
        measured = Measured(predictions_sha256=sha256_file(output), **about | timed_about)
        before = artifact.details.get("making_seconds", 0.0) + float(arrays["answer_seconds"])
        seconds = before + time.perf_counter() - began
        record = self.write(variant, seconds, status="ok", artifact=artifact, measured=measured)
        remove(self.pending(variant))
        return record

    def timed(self, variant: Variant, artifact: Artifact, questions: dict | None = None) -> dict[str, np.ndarray]:
        """The variant's times, and its answers to questions; again if something else had the machine meanwhile."""
        profile, budgets = self.profile, self.profile.measure
        job = measuring.Timing(
            variant=str(self.folder(variant.name)),
            baseline=str(self.folder(profile.baseline)),
            device=self.device,
            threads=self.threads,
            seed=self.seed,
            texts=self.splits["test"]["text"][:],
            shapes=budgets.shapes.model_dump() if self.is_shaped(variant) else None,
            questions=questions,
            **self.told_by_baseline(variant),
            batch_sizes=budgets.batch_sizes + (budgets.cuda_batch_sizes if self.device == "cuda" else []),
            **budgets.model_dump(exclude={"shapes", "batch_sizes", "cuda_batch_sizes"}),
        )
        for left in reversed(range(TRIES)):
            # A fork has imported what the baseline needs; but what a variant's own library costs to load is counted.
            arrays = (measuring if in_torch(artifact.backend) else forked).measure(job)
            self.learn_handover(arrays)
            slower = self.slower_than_usual(variant, arrays)
            if slower < DISTURBED:
                break
            again = f"measured again, {left} tries left" if left else "its times are left out of the report"
            told = f"the baseline beside it took {slower:.1f} times its usual time: {again}"
            print(f"{self.name(variant.name)}: {told}", flush=True)
        return arrays

    def told_by_baseline(self, variant: Variant) -> dict:
        """What the measurements of the baseline, and of others, have found for this one; {} for the baseline itself."""
        if variant.name == self.profile.baseline:
            return {}
        run = self.name(self.profile.baseline)
        with np.load(self.profile.predictions(run), allow_pickle=False) as arrays:
            self.learn_handover(arrays)
        size = read_record(self.profile.record(run)).measured.batch_size
        return {"baseline_batch_size": size, "handover": self.handover}

    def learn_handover(self, arrays: Mapping[str, np.ndarray]) -> None:
        if "near_handover_seconds" in arrays:  # not of one thread, nor on a GPU
            self.handover = min(self.handover, float(arrays["near_handover_seconds"]))

    def slower_than_usual(self, variant: Variant, now: Mapping[str, np.ndarray]) -> float:
        """How many times its own record's seconds the baseline took beside this variant, in the worse of both timings.

        More than a little means that something else had the machine, and that neither of the two was timed.
        """
        if variant.name == self.profile.baseline:
            return 1.0
        usual = self.profile.predictions(self.name(self.profile.baseline))
        with np.load(usual, allow_pickle=False) as before:
            # Latency is told as a median, throughput as all rounds together.
            timings = {"latency_seconds": np.median, "throughput_seconds": np.sum}
            return max(float(total(now[name][:, 1]) / total(before[name][:, 1])) for name, total in timings.items())

    def summary(self, record: Record) -> str:
        """One line to steer by: F1 on validation, never on test."""
        size = f"{record.sizes.bytes / 1e6:.2f} MB"
        if self.profile.no_quality:
            return size
        labels = self.splits["validation"]["label"]
        with np.load(self.profile.predictions(record.run), allow_pickle=False) as arrays:
            f1 = quality(arrays["logits/validation"], np.array(labels))["f1"]
        return f"{size}, validation F1 {f1:.4f}"

    def write(
        self, variant: Variant, seconds: float, status: str, reason: str = "", artifact=None, measured=None
    ) -> Record:
        key = artifact.key if artifact else self.skip_key(variant) if status == "skipped" else None
        record = Record(
            run=self.name(variant.name),
            variant=variant.name,
            chapter=variant.chapter,
            method=variant.method,
            parent=variant.parent,
            backend=artifact.backend if artifact else None,
            device=self.device,
            trained=self.profile.is_trained(variant),
            seed=self.seed,
            status=status,
            reason=reason,
            key=key,
            measure_key=self.measure_key(variant, key) if artifact else None,
            data_fingerprint=self.card["fingerprint"],
            train_seconds=artifact.train_seconds if artifact else None,
            seconds=seconds,
            details=artifact.details if artifact else {},
            sizes=artifact
            and Sizes(
                bytes=artifact.size,
                bytes_with_tokenizer=artifact.size_with_tokenizer,
                parameters=artifact.parameters,
                nonzero_parameters=artifact.nonzero_parameters,
            ),
            measured=measured,
            provenance=provenance(self.seed, self.threads, self.train_device),
        )
        write_record(self.profile.record(record.run), record)
        return record


def run_stage(script: str, makers: dict[str, Maker], args) -> int:
    """What main() of every numbered script does with its parsed options; returns the number of failed variants.

    Of several processes (compress.processes) the main one does it, and the others help it train.
    """
    from compress.engines.predictor import check_device

    train_device = args.train_device or args.device
    for device in {args.device, train_device}:
        check_device(device)
    processes.start(train_device)
    with processes.main_first():  # what is wrong with the profile is told once
        stage = Stage(script, makers, load_profile(args.profile), args)
    failed = 0
    if processes.is_main():
        failed = stage.run(args.only)
        processes.from_main(None)
    else:
        stage.help()
    processes.leave()
    return failed
