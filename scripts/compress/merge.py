"""Records that another machine made: taken into this build folder if they are of the same data, code and libraries."""

import ast
import shutil
from pathlib import Path

from compress.config.profile import Profile, run_name
from compress.data.prepare import load_card
from compress.errors import UserError
from compress.files import _local_imports, atomic_path
from compress.paths import SCRIPTS
from compress.provenance import LIBRARIES, code, git, installed
from compress.storage.record import Record, check_arrays, read_record

# What times depend on; memory is left out, since one kind of machine reports it a little differently each time.
MACHINE = ("system", "architecture", "cpu", "cpu_family_model", "cpu_flags", "cores", "gpu")
HARNESS = ("stage", "cli", "profile", "processes")  # how a run is kept in order, which no number depends on


def merge(profile: Profile, folder: Path, seeds: list[int], device: str) -> list[str]:
    """Copies the records and predictions of `folder`, another build/<profile>/, that are not here; returns their runs.

    Raises UserError that names every difference, and then copies nothing.
    """
    theirs = read_folder(profile, folder, seeds, device)
    differences: dict[str, list[str]] = {}
    for run, record in theirs.items():
        for difference in [*origin(profile, record), *lineage(profile, theirs, record)]:
            differences.setdefault(difference, []).append(run)
    new = []
    for run, record in theirs.items():
        ours = profile.record(run)
        if not ours.exists() or (mine := read_record(ours)).status == "failed":
            new.append(run)
        elif difference := conflict(mine, record):
            differences[f"{run}: {difference}"] = [run]
    if differences:
        lines = [f"{folder}: {text}{_in_runs(text, runs)}" for text, runs in differences.items()]
        raise UserError("\n".join([*lines, "nothing of this folder was merged"]))
    for run in new:
        if theirs[run].status == "ok":
            copy(folder / "predictions" / f"{run}.npz", profile.predictions(run))
        copy(folder / "records" / f"{run}.json", profile.record(run))  # last: it vouches for the predictions
    return new


def read_folder(profile: Profile, folder: Path, seeds: list[int], device: str) -> dict[str, Record]:
    """The checked records by run, in the profile's order; UserError if one is damaged or there are none."""
    found = {}
    for seed in seeds:
        for variant in profile.variants:
            run = run_name(variant.name, seed, device)
            path = folder / "records" / f"{run}.json"
            if path.exists():
                found[run] = record = read_record(path)
                if record.status == "ok":
                    check_arrays(folder / "predictions" / f"{run}.npz", record)
    if not found:
        numbers = " ".join(map(str, seeds))
        raise UserError(f"{folder}: no records of profile {profile.name}, seeds {numbers}, device {device} there")
    return found


def origin(profile: Profile, record: Record) -> list[str]:
    """How the data, code and libraries behind a record differ from those that are here."""
    source = record.provenance
    pairs = {"data_fingerprint": (record.data_fingerprint, load_card(profile)["fingerprint"])}
    pairs |= {f"libraries.{name}": (source.libraries.get(name), installed(name)) for name in LIBRARIES}
    here = code()
    if source.dirty or here["dirty"]:
        pairs["dirty (uncommitted changes)"] = (source.dirty, here["dirty"])
    found = [f"{field}: {there} there, {ours} here" for field, (there, ours) in pairs.items() if there != ours]
    if source.dirty and here["dirty"]:
        found.append("dirty (uncommitted changes): there and here, so nothing tells whether the code is the same")
    if not same_code(profile, source.commit, here["commit"]):
        found.append(f"commit: {source.commit} there, {here['commit']} here, which are not known to be the same code")
    return found


def same_code(profile: Profile, there: str | None, here: str | None) -> bool:
    """True for one commit, and for two between which nothing that makes or measures a model has changed."""
    if there is None or there == here:
        return there is not None
    makers = [*sources(), f"scripts/profiles/{profile.name}.toml", "requirements.txt"]
    return here is not None and git("diff", "--quiet", there, here, "--", *makers) is not None


def sources() -> list[str]:
    """The makers of models, the protocol, and all that they import, but for the harness around them."""
    found: set[Path] = set()
    todo = [*SCRIPTS.glob("0[1-6]*.py"), SCRIPTS / "compress/measure.py"]
    while todo:
        path = todo.pop()
        if path not in found and path.stem not in HARNESS:
            found.add(path)
            todo += [file for node in ast.walk(ast.parse(path.read_text("utf-8"))) for file in _local_imports(node)]
    return sorted(f"scripts/{path.relative_to(SCRIPTS)}" for path in found)


def lineage(profile: Profile, theirs: dict[str, Record], record: Record) -> list[str]:
    """What is missing of a record's ancestors, and how its machine differs from the baseline's where times count."""
    names = [profile.baseline, *profile.ancestors(record.variant)]
    runs = {name: run_name(name, record.seed, record.device) for name in names}
    found = [f"{run}: no record there, though others were made from it" for run in runs.values() if run not in theirs]
    baseline = theirs.get(runs[profile.baseline])
    if record.seed == 0 and baseline:  # the other seeds are not timed
        there, base = (
            {**r.provenance.machine.model_dump(), "threads": r.provenance.threads} for r in (record, baseline)
        )
        found += [
            f"{field}: {there[field]} there, {base[field]} where {baseline.run} was measured: times don't compare; "
            "copy models/ alone and run the stage here, which measures them"
            for field in (*MACHINE, "threads")
            if there[field] != base[field]
        ]
    return found


def conflict(ours: Record, theirs: Record) -> str | None:
    """How two records of one run differ in what they say of the model; None if ours can stand for both."""
    if theirs.status == "failed" or (ours.status == theirs.status == "skipped" and ours.key == theirs.key):
        return None
    if ours.status == theirs.status == "ok" and ours.measured.predictions_sha256 == theirs.measured.predictions_sha256:
        return None
    told = [r.measured.predictions_sha256[:12] if r.measured else r.status for r in (theirs, ours)]
    return (
        f"predictions: {told[0]} there, {told[1]} here; make it on one machine and copy its files in models/, records/ "
        "and predictions/ to the others before they go on from it"
    )


def copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _in_runs(text: str, runs: list[str]) -> str:
    others = [run for run in runs if not text.startswith(f"{run}:")]
    return f" ({others[0]}{f' and {len(others) - 1} more' if len(others) > 1 else ''})" if others else ""
