"""Runs of the HTTP benchmark to results: every column from the raw latencies of build/<profile>/serving/.

Writes results/<profile>/serving.csv (a row per server, layout and rate), services.csv (the five classifiers) and
serving.json (where and on what runs were measured, with their servers). A run whose load generator was late itself is
void: it is left out, and `reason` counts it. Peers are there if make serve-peers has run. Fails if a server of the
profile has no runs, or runs of different code or budgets.
Example: python scripts/collate_serving.py --profile minilm
"""

import argparse
import json

from compress.cli import main_guard, profile_parser

COLUMNS = (  # noqa: SIM905
    "variant layout offered_rps achieved_rps goodput_rps latency_ms_p50 latency_ms_p95 latency_ms_p99 shed_fraction "
    "error_fraction batch_size_mean padding_ratio server_cpu_seconds_per_request peak_rss_mb share requests "
    "lag_ms_p99 refused_ms_p99 reason"
).split()
SERVICE_COLUMNS = (  # noqa: SIM905
    "variant task classes train_sentences test_sentences f1_test accuracy_test largest_class batch_flip_rate size_mb "
    "train_seconds"
).split()


def service_rows(profile) -> list[dict]:
    """Quality of the five classifiers, each on its own task's test split."""
    import numpy as np
    from collate import row_of, write_card, write_measured
    from compress.data.tasks import load_tasks, service_variants
    from compress.errors import UserError
    from compress.metrics import quality
    from compress.storage.record import read_arrays, read_record

    tasks, rows = load_tasks(profile), []
    for variant in service_variants(profile):
        record = read_record(profile.record(variant.name))
        task = tasks[variant.task]
        if record.status != "ok":
            raise UserError(f"{profile.record(variant.name)}: {record.reason}")
        if record.data_fingerprint != task.fingerprint:
            raise UserError(
                f"{profile.record(variant.name)}: its sentences are not those of today's data; make it again"
            )
        arrays = read_arrays(profile, record)
        labels = np.array([label for _, label in task.rows["test"]])
        scores = quality(arrays["logits/test"], labels)
        alone, batched = (arrays[name].argmax(-1) for name in ("logits/test", "logits_batched/test"))
        rows.append(
            {
                "variant": variant.name,
                "task": variant.task,
                "classes": len(task.labels),
                "train_sentences": len(task.rows["train"]),
                "test_sentences": len(labels),
                "f1_test": scores["f1"],
                "accuracy_test": scores["accuracy"],
                "largest_class": float(np.bincount(labels).max() / len(labels)),
                "batch_flip_rate": float(np.mean(alone != batched)),
                "size_mb": record.sizes.bytes / 1e6,
                "train_seconds": record.train_seconds,
            }
        )
        folder = profile.model(variant.name)
        if folder.exists():  # records of another machine come without
            write_card(profile, folder, row_of(record, arrays) | {"f1_test": scores["f1"]})
            write_measured(folder, rows[-1])
    return rows


def finished_runs(profile) -> list:
    """Every run that is there, each server's of one code and one budget; raises UserError saying what to run."""
    from compress.errors import UserError
    from compress.loadtest.bench import own_names, read_run, serving_folder
    from compress.results.reading import is_beside

    folder = serving_folder(profile)
    runs = [read_run(path) for path in sorted(folder.glob("*/*.npz"))]
    keys: dict[str, set] = {}
    for run in runs:
        if not run.layout.startswith("sweep-"):  # another setting, another key
            keys.setdefault(run.server, set()).add(run.about["key"])
    if missing := set(own_names(profile)) - set(keys):
        raise UserError(f"{folder}: no runs of {sorted(missing)[0]}; run: make serve-bench PROFILE={profile.name}")
    if mixed := [name for name, of_server in keys.items() if len(of_server) > 1]:
        command = f"make {'serve-peers' if is_beside(mixed[0]) else 'serve-bench'} PROFILE={profile.name}"
        raise UserError(f"{folder / mixed[0]}: runs of two codes or budgets; run: {command}")
    return runs


def serving_rows(profile, finished) -> list[dict]:
    """A row per server, layout and share of its saturation, all repeats together; void runs left out."""
    from compress.loadtest.bench import LATE, is_void, own_names, summarize

    groups: dict[tuple, list] = {}
    for run in finished:
        groups.setdefault((run.server, run.layout, run.share), []).append(run)
    order = {name: i for i, name in enumerate(own_names(profile))}
    rows = []
    for (server, layout, share), runs in groups.items():
        kept = [run for run in runs if not is_void(run.outcome)]
        tried = sum(run.about["tries"] for run in runs)
        void = f"{tried - len(kept)} of {tried} runs void: the generator was later than {1000 * LATE:.0f} ms"
        row = {column: None for column in COLUMNS} | summarize(kept or runs)
        if not kept:
            lag = row["lag_ms_p99"]
            row = {column: None for column in COLUMNS} | {"offered_rps": row["offered_rps"], "lag_ms_p99": lag}
        about = {"variant": server, "layout": layout, "share": share, "reason": "" if tried == len(kept) else void}
        rows.append(row | about)
    return sorted(
        rows, key=lambda row: (order.get(row["variant"], len(order)), row["variant"], row["layout"], row["share"])
    )


def origins(finished) -> list[dict]:
    """Each distinct provenance of the runs, with how many are of it and the names of their servers."""
    groups: dict[str, list] = {}
    for run in finished:
        groups.setdefault(json.dumps(run.about["provenance"], sort_keys=True), []).append(run)
    return [
        {"servers": list(dict.fromkeys(run.server for run in runs)), "runs": len(runs), **json.loads(text)}
        for text, runs in groups.items()
    ]


def main(args: argparse.Namespace) -> int:
    from collate import write_csv
    from compress.config.profile import load_profile
    from compress.files import write_json

    profile = load_profile(args.profile)
    if profile.serving is None:
        return 0
    finished = finished_runs(profile)
    services, rows = service_rows(profile), serving_rows(profile, finished)
    write_csv(profile.results / "serving.csv", COLUMNS, rows)
    write_csv(profile.results / "services.csv", SERVICE_COLUMNS, services)
    write_json(profile.results / "serving.json", origins(finished))
    print(f"{profile.results}: {len(rows)} rows of serving.csv, {len(services)} services")
    return 0


if __name__ == "__main__":
    main_guard(main, profile_parser(__doc__))
