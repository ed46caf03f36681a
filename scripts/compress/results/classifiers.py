"""Rows of services.csv: the quality of the service's classifiers, each on its own task's test set."""

import numpy as np
from compress.config.profile import Profile
from compress.config.variants import Classifier
from compress.data.tasks import Task, load_tasks
from compress.errors import UserError
from compress.files import read_arrays, write_json
from compress.measure.evaluation import PREDICTIONS
from compress.metrics import quality
from compress.results.rows import ServiceRow
from compress.storage.record import read_record


def service_rows(profile: Profile) -> list[ServiceRow]:
    """A row per classifier of seed 0, also written to its folder for the service's /info. Raises UserError."""
    tasks = load_tasks(profile, seed=0)
    rows = [service_row(profile, variant, tasks[variant.task]) for variant in profile.services]
    for row in rows:
        quality_facts = {"f1_test": row.f1_test, "batch_flip_rate": row.batch_flip_rate}
        write_json(profile.variant_folder(row.variant) / "measured.json", quality_facts)
    return rows


def service_row(profile: Profile, variant: Classifier, task: Task) -> ServiceRow:
    folder = profile.variant_folder(variant.name)
    record = read_record(folder)
    if record.status != "ok":
        raise UserError(f"{folder}: {record.status}: {record.reason}")
    if record.data_fingerprint != task.fingerprint:
        raise UserError(f"{folder}: was trained on other sentences than today's; run: make serve-bench")
    arrays = read_arrays(folder / PREDICTIONS)
    labels = np.array([label for _, label in task.rows["test"]])
    scores = quality(arrays["logits/test"], labels)
    alone, batched = (arrays[key].argmax(-1) for key in ("logits/test", "logits_batched/test"))
    return ServiceRow(
        variant=variant.name,
        task=variant.task,
        classes=len(task.labels),
        train_sentences=len(task.rows["train"]),
        test_sentences=len(labels),
        f1_test=scores["f1"],
        accuracy_test=scores["accuracy"],
        largest_class=float(np.bincount(labels).max() / len(labels)),
        batch_flip_rate=float(np.mean(alone != batched)),
        size_mb=record.sizes.bytes / 1e6,
        train_seconds=record.train_seconds,
    )
