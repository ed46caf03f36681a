"""results/<profile>/seed<k>.npz: every record, prediction and time of a seed in one file, without any model.

Its arrays: "<variant>/record" (the text of record.json), "<variant>/predictions/<array>", "<variant>/cold/<array>",
"<variant>/timing-<pass>/<array>", "labels/<set>", "texts/test", "classes" and "card" (the text of data.json). The
labels of the held-out unlabelled texts are the large teacher's predictions. Logits are stored as half floats, after
subtracting their row's maximum; times are float32. Equal content gives equal bytes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from compress.config.profile import Profile
from compress.data.card import OUT_OF_DOMAIN, held_out, load_card, load_splits
from compress.errors import Skip, UserError
from compress.files import atomic_path, read_arrays
from compress.measure.evaluation import PREDICTIONS
from compress.measure.timing import COLD, timing_file
from compress.methods.large_teacher import large_teacher_logits
from compress.storage import record as records
from compress.storage.record import Record, parse_record, read_record

SETS = ("test", "validation", *OUT_OF_DOMAIN)
UNLABELLED = "unlabelled"  # texts that no student learns from; missing without a large teacher
HALF = np.finfo(np.float16)
ABOUT = {  # facts that rows are computed from
    "predictions": ("precision", "threads", "seconds"),
    "timing": ("batch_size", "throughput_sentences", "threads", "seconds"),
    "cold": ("peak_rss_bytes", "load_seconds"),
}


@dataclass(frozen=True)
class Measured:
    """One .npz of a variant's folder: its arrays by name, and the facts of its "about"."""

    arrays: dict[str, np.ndarray]
    about: dict


@dataclass(frozen=True)
class Entry:
    """A variant of a seed. Without predictions it was not evaluated, without passes not timed."""

    record: Record
    predictions: Measured | None
    passes: list[Measured]
    cold: Measured | None

    @property
    def evaluated(self) -> bool:
        return self.record.status == "ok" and self.predictions is not None

    @property
    def logits(self) -> dict[str, np.ndarray]:
        """By set, and "batched" for the test set in batches."""
        arrays = self.predictions.arrays
        of_sets = {name.removeprefix("logits/"): array for name, array in arrays.items() if name.startswith("logits/")}
        return of_sets | {"batched": arrays["logits_batched/test"]}


@dataclass(frozen=True)
class Seed:
    """The content of a seed file. Other seeds may have other sentences."""

    number: int
    entries: dict[str, Entry]
    labels: dict[str, np.ndarray]
    texts: list[str]  # of the test set
    classes: list[str]
    card: dict

    @property
    def evaluated(self) -> dict[str, Entry]:
        return {name: entry for name, entry in self.entries.items() if entry.evaluated}


def seed_path(results: Path, seed: int) -> Path:
    return results / f"seed{seed}.npz"


def seed_is_built(profile: Profile, seed: int, device: str) -> bool:
    return (profile.variant_folder(profile.baseline, seed, device) / records.FILE).exists()


def write_seed_file(path: Path, profile: Profile, seed: int, device: str) -> None:
    """Packs a seed of build/<profile>/; raises UserError naming a file that is damaged or of other data.

    Children of a model that was built again since are left out, by name: they belong to the model of before.
    """
    splits, card = load_splits(profile, seed), load_card(profile, seed)
    packed = {f"labels/{name}": np.array(splits[name]["label"], np.int64) for name in SETS if name in splits}
    if (labels := teacher_labels(profile, seed, held_out(splits))) is not None:
        packed[f"labels/{UNLABELLED}"] = labels
    packed |= {"texts/test": np.array(splits["test"]["text"]), "classes": np.array(card["labels"])}
    packed["card"] = np.array(json.dumps(card, sort_keys=True))
    seals: dict[str, str | None] = {}  # of the packed models
    for variant in profile.variants:  # parents come before their children
        folder = profile.variant_folder(variant.name, seed, device)
        if not (folder / records.FILE).exists():
            continue
        record = read_record(folder)
        if record.data_fingerprint != card["fingerprint"]:
            data = profile.data_folder(seed)
            raise UserError(f"{folder / records.FILE}: built from other data than {data}; run make all")
        if changed := [name for name, seal in record.parents.items() if seals.get(name) != seal]:
            print(f"{variant.name} (seed {seed}): left out, because {changed[0]} was built again since; run make all")
            continue
        seals[variant.name] = record.artifact_sha256
        packed[f"{variant.name}/record"] = np.array((folder / records.FILE).read_text("utf-8"))
        files = [folder / PREDICTIONS, folder / COLD]
        files += [timing_file(folder, number) for number in range(profile.measure.passes)]
        for file in files if record.status == "ok" else ():
            if file.exists():
                packed |= {f"{variant.name}/{file.stem}/{name}": array for name, array in _packed(file, record).items()}
    _write_npz(path, packed)


def teacher_labels(profile: Profile, seed: int, texts: list[str]) -> np.ndarray | None:
    """The large teacher's classes, int64 [texts]; None without texts or without its logits for this seed."""
    if profile.teacher is None or not texts:
        return None
    try:
        return large_teacher_logits(profile, seed, texts).argmax(-1)
    except Skip as reason:
        print(f"seed {seed}: champions are chosen without the large teacher's predictions: {reason}")
        return None


def half_logits(logits: np.ndarray) -> np.ndarray:
    """Logits [sentences, classes] less their row's maximum as float16, with exactly the same argmax.

    A difference too small for float16 becomes the smallest negative number, one too large the largest.
    """
    differences = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    rounded = np.clip(differences, HALF.min, 0).astype(np.float16)
    rounded[(rounded == 0) & (differences < 0)] = -HALF.smallest_subnormal
    return rounded


def read_seed_file(path: Path) -> Seed:
    """The checked content of a seed file; raises UserError naming the file, and the variant if it is one's fault."""
    arrays = read_arrays(path)
    try:
        number = int(path.stem.removeprefix("seed"))
        sets = [name for name in (*SETS, UNLABELLED) if f"labels/{name}" in arrays]
        labels = {name: arrays.pop(f"labels/{name}") for name in sets}
        texts, classes, card = (arrays.pop(name) for name in ("texts/test", "classes", "card"))
        if len(labels["test"]) != len(texts):
            raise ValueError("as many labels as texts expected")
        groups: dict[str, dict[str, dict]] = {}
        for name, array in arrays.items():
            variant, part, *rest = name.split("/", 2)
            groups.setdefault(variant, {}).setdefault(part, {})["".join(rest)] = array
        entries = {variant: _entry(parts, f"{path}: {variant}") for variant, parts in groups.items()}
        for variant, entry in entries.items():
            _check(entry, labels, len(classes), f"{path}: {variant}")
        return Seed(number, entries, labels, texts.tolist(), classes.tolist(), json.loads(str(card)))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path}: not a complete seed file ({error!r}); take it from git again or run make all"
        ) from None


def _entry(parts: dict[str, dict], source: str) -> Entry:
    if "record" not in parts:
        raise UserError(f"{source}: has no record; run make all")
    measured = {part: _measured(part, parts[part], source) for part in sorted(parts) if part != "record"}
    passes = [value for part, value in measured.items() if part.startswith("timing-")]
    record = parse_record(str(parts["record"][""]), source)
    return Entry(record, measured.get("predictions"), passes, measured.get("cold"))


def _measured(part: str, arrays: dict[str, np.ndarray], source: str) -> Measured:
    about = json.loads(str(arrays.pop("about", "{}")))
    for name in ABOUT[part.partition("-")[0]]:
        if name not in about:
            raise UserError(f"{source}: {part}: about lacks {name}; run make all")
    return Measured(arrays, about)


def _check(entry: Entry, labels: dict[str, np.ndarray], classes: int, source: str) -> None:
    """Raises UserError unless the arrays have the shapes that the rows are computed from."""
    if entry.evaluated:
        wanted = {f"logits/{name}": (len(truth), classes) for name, truth in labels.items()}
        wanted["logits_batched/test"] = wanted["logits/test"]
        for name, shape in wanted.items():
            array = entry.predictions.arrays.get(name)
            if array is None or array.shape != shape:
                raise UserError(
                    f"{source}: {name} must have the shape {shape}; remove its predictions.npz and run make all"
                )
    for timing in entry.passes:
        for name in ("latency_seconds", "text_seconds", "throughput_seconds"):
            array = timing.arrays.get(name)
            if array is None or array.ndim != 2 or array.shape[1] != 2 or not (array > 0).all():
                raise UserError(f"{source}: {name} must be pairs of positive seconds; run make all")


def _packed(path: Path, record: Record) -> dict[str, np.ndarray]:
    """The arrays of a variant's file as they are packed.

    Raises UserError for logits that are not finite, and for predictions of another model than the record's.
    """
    packed, arrays = {}, read_arrays(path)
    if path.stem == "predictions" and f'"{record.artifact_sha256}"' not in str(arrays.get("about")):
        raise UserError(f"{path}: predictions of another model; remove it and run make all")
    for name, array in arrays.items():
        if name.startswith("logits"):
            if not np.isfinite(array).all():
                raise UserError(f"{path}: {name}: not finite; remove the variant's folder and run make all")
            packed[name] = half_logits(array)
        else:
            packed[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
    return packed


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes the arrays in sorted order; NumPy gives all members one date, so equal content gives equal bytes."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **dict(sorted(arrays.items())))
