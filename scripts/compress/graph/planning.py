"""The plan: which variants to build from which parents and sources, written as a Makefile and one JSON per variant.

A plan file is rewritten only when its content changes, so that Make rebuilds exactly the variants whose options did.
The plan of the data lists the local files with date and size: it changes with them, and Make reads it alone.
Nothing here imports a heavy library: `make all` plans every time.
"""

import ast
import json
import zipfile
from functools import cache
from pathlib import Path

from compress.config.profile import Profile
from compress.config.variants import Classifier
from compress.data.identity import profile_files
from compress.errors import UserError
from compress.files import remove, write_text
from compress.paths import ROOT, SCRIPTS
from compress.storage.artifact import read_artifact
from compress.storage.record import FILE as RECORD
from compress.storage.record import read_record

# Code that decides what a model or its record becomes. Others run models: after a change that alters predictions, run
# make clean.
DECIDING = (
    "compress.methods.",
    "compress.storage.packed",
    "compress.storage.coding",
    "compress.data.card",
    "compress.engines.factored",
    "compress.engines.int8",
    "compress.engines.mpnet",
    "compress.engines.ort",
    "compress.engines.ov",
    "compress.engines.shallow",
    "compress.engines.two_stage",
)


def parents_of(profile: Profile, variant) -> list[str]:
    """The variants whose artifacts a build reads: its parents, and the baseline as teacher if it trains a child."""
    teacher = [profile.baseline] if variant.parent and variant.has_training else []
    return list(dict.fromkeys([*variant.parents, *teacher]))


def teacher_files(profile: Profile, variant, seed: int) -> list[Path]:
    """The file with the large teacher's logits, if the variant learns from it and it exists."""
    if not variant.learns_from_large:
        return []
    path = profile.teacher_file(seed)
    return [path] if path.exists() else []


def sources_of(variant) -> list[Path]:
    """The Python files that decide what the variant becomes: its method's module and all that this imports.

    Not its numbered script, which only passes arguments on: a new method would make all others of its script stale.
    """
    todo, seen = [f"compress.methods.{variant.module}"], set()
    if isinstance(variant, Classifier):
        todo.append("compress.data.tasks")  # chooses its sentences
    while todo:
        name = todo.pop()
        if name not in seen and module_path(name).is_file():
            seen.add(name)
            todo += [other for other in imported(name) if other.startswith(DECIDING)]
    return sorted(map(module_path, seen))


def module_path(name: str) -> Path:
    return SCRIPTS / f"{name.replace('.', '/')}.py"


@cache
def imported(name: str) -> list[str]:
    """Names of the modules that a module imports; `from a import b` counts as a and as a.b."""
    found = []
    for node in ast.walk(ast.parse(module_path(name).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def variants_to_build(profile: Profile, scope: str, only: list[str]) -> list:
    """The variants of a scope, services last, or the baseline and those named in `only` with all their ancestors.

    Raises UserError for an unknown name.
    """
    if not only:
        return [*profile.in_scope(scope), *profile.services]
    known = [variant.name for variant in profile.everything]
    if unknown := sorted(set(only) - set(known)):
        raise UserError(f"profile {profile.name} has no variant {unknown[0]!r}; it has: {', '.join(known)}")
    needed = {profile.baseline}.union(*map(profile.ancestors, only))
    return [variant for variant in profile.everything if variant.name in needed]


def write_plan(profile: Profile, variants: list, seeds: list[int], device: str, train_device: str) -> None:
    """Writes a JSON file per variant, data.json, _measure.json, and plan.mk, which the Makefile includes."""
    plans = {"data": {key: getattr(profile, key).model_dump(mode="json") for key in ("data", *profile.encoders)}}
    stats = {str(file): file.stat() for file in profile_files(profile)}
    plans["data"]["longest_input"] = profile.longest_input
    plans["data"]["files"] = {name: [stat.st_mtime_ns, stat.st_size] for name, stat in stats.items()}
    for variant in variants:
        length = {"max_length": profile.data.max_length}
        plans[variant.name] = {"options": variant.recipe, "train_device": train_device, **length}
        if variant.learns_from_large:
            plans[variant.name]["teacher"] = profile.teacher
    plans["_measure"] = profile.measure.model_dump(mode="json")
    for name, plan in plans.items():
        folder = profile.plan_folder("cpu" if name == "data" else device)  # data are the same for every device
        write_if_changed(folder / f"{name}.json", json.dumps(plan, indent=1, sort_keys=True) + "\n")
    write_if_changed(profile.build / "plan.mk", makefile(profile, variants, seeds, device))


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text("utf-8") != text:
        write_text(path, text)


def makefile(profile: Profile, variants: list, seeds: list[int], device: str) -> str:
    """One rule per variant and seed; all paths are relative to the repository."""
    lines = [f"# Written by scripts/plan.py from scripts/profiles/{profile.name}.toml: do not edit."]
    lines += [f"PASSES := {profile.measure.passes}", f"BASELINE := {profile.baseline}"]
    for stage, of_stage in by_stage(profile, variants).items():
        built = [(variant, seed) for seed in seeds for variant in variants_of(of_stage, seed)]
        targets = [target(profile, variant.name, seed, device) for variant, seed in built]
        lines.append(f"RECORDS_OF_{stage} := {' '.join(targets)}")
    for seed in seeds:
        data = relative(profile.data_folder(seed) / "data.json")
        # The longest trainings first: one that starts last would leave the other cores idle. An order by the chains of
        # trainings would not help: Make looks at a child again only after it has gone through all others.
        built = variants_of(variants, seed)
        order = sorted(built, key=lambda variant: -sum(training.epochs for training in variant.trainings))
        targets = [target(profile, variant.name, seed, device) for variant in order]
        lines.append(f"RECORDS_{seed} := {' '.join(targets)}")
        for number, variant in enumerate(built, 1):
            needed = [relative(profile.plan_folder(device) / f"{variant.name}.json"), data]
            needed += [relative(path) for path in sources_of(variant)]
            needed += [relative(path) for path in teacher_files(profile, variant, seed)]
            needed += [target(profile, name, seed, device) for name in parents_of(profile, variant)]
            start = "$(START_TRAINING)" if variant.has_training else "$(PY)"
            command = f"{start} scripts/{variant.script} $(BUILD_OPTIONS) --seed {seed}"
            lines.append(f"{target(profile, variant.name, seed, device)}: {' '.join(needed)}")
            lines.append(f"\t@{command} --number '[{number}/{len(built)}]' {variant.name}")
    return "\n".join(lines) + "\n"


def variants_of(variants: list, seed: int) -> list:
    """Those to build for a seed: the service runs the classifiers of seed 0."""
    return [variant for variant in variants if seed == 0 or not isinstance(variant, Classifier)]


def by_stage(profile: Profile, variants: list) -> dict[str, list]:
    """The variants of each numbered script, by its Make target: 02_quantize_prune.py is quantize-prune.

    The service's benchmark also needs the variants that it serves.
    """
    stages = {path.stem[3:].replace("_", "-"): path.name for path in sorted(SCRIPTS.glob("0*.py"))}
    served = profile.serving.variants if profile.serving else []
    return {
        stage: [v for v in variants if v.script == script or (stage == "serve-bench" and v.name in served)]
        for stage, script in stages.items()
    }


def target(profile: Profile, name: str, seed: int, device: str) -> str:
    return relative(profile.variant_folder(name, seed, device) / RECORD)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def discard_unusable(profile: Profile, variants: list, seeds: list[int], device: str) -> list[str]:
    """Removes records and stamps that are not valid, so that Make repeats their steps; returns a line for each.

    These are records of failed builds and of damaged artifacts, and stamps of steps whose predictions or times are
    missing or damaged. Artifacts are checked by names and sizes only: loading a model verifies its hashes.
    """
    removed = []
    for seed in seeds:
        seed_folder = profile.seed_folder(seed, device)
        for variant in variants:
            folder = seed_folder / variant.name
            if not (folder / RECORD).exists():
                continue
            if reason := why_unusable(folder):
                remove(folder / RECORD)
                removed.append(f"{variant.name} will be built again: {reason}")
            elif (folder / "artifact.json").exists():
                removed += discard_incomplete(profile, variant, folder, timed=variant.timed and seed == 0)
    return removed


def why_unusable(folder: Path) -> str | None:
    try:
        record = read_record(folder)
        if record.status == "failed":
            return f"it failed: {record.reason}"
        for name, file in read_artifact(folder, verify=False).files.items() if record.status == "ok" else ():
            path = folder / name
            if not path.is_file() or path.stat().st_size != file.bytes:
                return f"{path} is missing or has another size than artifact.json says"
    except UserError as error:
        return str(error)
    return None


def discard_incomplete(profile: Profile, variant, folder: Path, timed: bool) -> list[str]:
    """Removes damaged measurements of one model, and the stamps of steps whose measurements are incomplete."""
    removed = []
    steps = {".evaluated": ["predictions.npz"]}
    if timed:
        steps[".timed-*"] = ["cold.npz", *(f"timing-{number}.npz" for number in range(profile.measure.passes))]
    for stamps, names in steps.items():
        for path in (folder / name for name in names):
            if path.exists() and not zipfile.is_zipfile(path):
                remove(path)
                removed.append(f"{variant.name} will be measured again: {path} was damaged")
            if not path.exists():
                for stamp in folder.parent.glob(stamps):
                    remove(stamp)
    return removed
