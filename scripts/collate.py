"""Records to results: checks every record of a profile and computes every metric from raw logits and times.

Reads build/<profile>/records/ and predictions/; writes results/<profile>/variants.csv and methods.json,
environment.json, data.json, answers.npz, of the first seed reliability.csv and flips.csv, of several seeds seeds.csv
(results/<profile>/cuda/ for a GPU's records), and into each model's folder a card (README.md) and what a service tells
of it (measured.json).
Fails if a variant of the profile has no record for the first seed, and when a record says that a variant failed.
Other seeds and other devices than the CPU may be there in part: what is not is counted in the last lines.
Example: python scripts/collate.py --profile minilm --seeds "0 1 2" --merge ../other-machine/build/minilm
"""

import argparse
import csv
import io
from pathlib import Path

from compress.cli import main_guard, profile_parser

COLUMNS = (  # noqa: SIM905
    "variant chapter method parent backend precision device trained seed f1_test f1_ci_low f1_ci_high "
    "f1_drop_points f1_drop_ci_low f1_drop_ci_high mcnemar_p_holm flip_rate batch_flip_rate accuracy_test "
    "f1_macro_test ece_test f1_amazon f1_tweets f1_nyt parameters nonzero_parameters size_mb "
    "size_with_tokenizer_mb size_ratio latency_ms_p50 latency_ms_p95 latency_speedup throughput_per_s "
    "throughput_speedup peak_rss_mb train_seconds threads status reason"
).split()
RELIABILITY = ("variant", "bin", "sentences", "confidence", "accuracy")
FLIPS = ("sentence", "text", "label", "answer", "confidence", "flipped", "variants")
NOT_TIMED = "not timed: the same arithmetic at run time as a row that was"


def check_model(profile, record, variant) -> None:
    """Raises UserError if the model beside a record is not the one that it tells of, or not of the profile's options.

    A record of another machine has no model here.
    """
    from compress.errors import UserError
    from compress.storage.artifact import read_artifact

    folder = profile.model(record.run)
    if record.status != "ok" or not (folder / "artifact.json").exists():
        return
    artifact = read_artifact(folder, verify=False)
    here, wanted = ({**options, "timed": None} for options in (artifact.options, variant.model_dump(mode="json")))
    if here != wanted:
        raise UserError(f"{folder}: made by other options than profile {profile.name} has now")
    if artifact.key != record.key:
        raise UserError(f"{profile.record(record.run)}: measured before {folder} was made anew")


def read_records(profile, seeds, device) -> dict:
    """The checked records by (seed, variant); raises UserError for foreign data or one that must be there.

    Must: the CPU's of the first seed, and the baseline's of the first seed on any device.
    """
    from compress.config.profile import run_name
    from compress.data.prepare import load_card
    from compress.errors import UserError
    from compress.storage.record import read_record

    fingerprint = load_card(profile)["fingerprint"]
    records, wrong = {}, []
    for seed in seeds:
        for variant in profile.variants:
            path = profile.record(run_name(variant.name, seed, device))
            needed = seed == seeds[0] and (device == "cpu" or variant.name == profile.baseline)
            if not needed and not path.exists():
                continue
            try:
                record = read_record(path)
                if record.data_fingerprint != fingerprint:
                    raise UserError(f"{path}: its data_fingerprint is not that of {profile.data_folder}/data.json")
                check_model(profile, record, variant)
                records[seed, variant.name] = record
            except UserError as error:
                wrong.append(str(error))
    if wrong:
        raise UserError("\n".join([*wrong, f"run: make all PROFILE={profile.name} (or the stage that makes them)"]))
    return records


def seed_rows(profile, records, measured, labels) -> list[dict]:
    """The rows of one seed, from its records and measured arrays by variant.

    Differences and ratios are against the seed's own fine-tuned baseline.
    """
    rows = [row_of(record, measured.get(name)) for name, record in records.items()]
    if profile.baseline not in measured:
        return rows
    for row in rows:
        if row["variant"] in measured:
            row["size_ratio"] = records[profile.baseline].sizes.bytes / records[row["variant"]].sizes.bytes
            if profile.no_quality:
                row["reason"] = "; ".join(filter(None, [row["reason"], profile.no_quality]))
    if not profile.no_quality:
        add_quality(profile, rows, measured, labels)
    return rows


def add_quality(profile, rows, measured, labels) -> None:
    """Writes the columns of quality, and of its difference from the baseline's, into the rows that were measured."""
    import numpy as np
    from compress import metrics
    from compress.data.prepare import OUT_OF_DOMAIN

    names = list(measured)
    predictions = np.array([measured[name]["logits/test"].argmax(-1) for name in names])
    truth = labels["test"]
    classes = measured[profile.baseline]["logits/test"].shape[-1]
    f1 = metrics.bootstrap_f1(predictions, truth, metrics.bootstrap_weights(len(truth)), classes)
    base = names.index(profile.baseline)
    base_f1 = metrics.quality(measured[profile.baseline]["logits/test"], truth)["f1"]
    compared = {}
    for row in rows:
        name = row["variant"]
        if name not in measured:
            continue
        i, arrays = names.index(name), measured[name]
        scores = metrics.quality(arrays["logits/test"], truth)
        row |= {
            "f1_test": scores["f1"],
            "accuracy_test": scores["accuracy"],
            "f1_macro_test": scores["f1_macro"],
            "ece_test": scores["ece"],
            "f1_drop_points": 100 * (base_f1 - scores["f1"]),
            "flip_rate": float(np.mean(predictions[i] != predictions[base])),
            "batch_flip_rate": float(np.mean(predictions[i] != arrays["logits_batched/test"].argmax(-1))),
        }
        row["f1_ci_low"], row["f1_ci_high"] = metrics.interval(f1[:, i])
        row["f1_drop_ci_low"], row["f1_drop_ci_high"] = metrics.interval(100 * (f1[:, base] - f1[:, i]))
        for domain in OUT_OF_DOMAIN:
            if domain in labels:
                row[f"f1_{domain}"] = metrics.quality(arrays[f"logits/{domain}"], labels[domain])["f1"]
        if i != base:
            compared[name] = metrics.mcnemar_exact(predictions[i] == truth, predictions[base] == truth)
    adjusted = dict(zip(compared, metrics.holm(list(compared.values())), strict=True))
    for row in rows:
        row["mcnemar_p_holm"] = adjusted.get(row["variant"])


def row_of(record, arrays) -> dict:
    """What a record and its raw times say by themselves; None means not measured."""
    import numpy as np
    from compress.storage.record import speedup

    row = {column: None for column in COLUMNS}
    row |= {column: getattr(record, column) for column in COLUMNS if column in type(record).model_fields}
    if arrays is None:
        return row
    sizes, measured = record.sizes, record.measured
    row |= {
        "precision": measured.precision,
        "threads": measured.threads,
        "parameters": sizes.parameters,
        "nonzero_parameters": sizes.nonzero_parameters,
        "size_mb": sizes.bytes / 1e6,
        "size_with_tokenizer_mb": sizes.bytes_with_tokenizer / 1e6,
        # As with times, only of the first seed: another seed's answers may come from a fork, which hides memory.
        "peak_rss_mb": None if record.seed else measured.peak_rss_bytes / 1e6,
    }
    if "latency_seconds" not in arrays:
        return row | {"reason": NOT_TIMED}
    latency, throughput = arrays["latency_seconds"], arrays["throughput_seconds"]
    return row | {
        "latency_ms_p50": 1e3 * float(np.quantile(latency[:, 0], 0.5)),
        "latency_ms_p95": 1e3 * float(np.quantile(latency[:, 0], 0.95)),
        "latency_speedup": speedup(latency),
        "throughput_per_s": measured.throughput_sentences / float(throughput[:, 0].sum()),
        "throughput_speedup": speedup(throughput),
    }


def cell(value) -> str:
    """Six significant digits; an empty cell means not measured."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def csv_text(columns, rows) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([cell(row[column]) for column in columns] for row in rows)
    return text.getvalue()


def write_csv(path, columns, rows) -> None:
    from compress.files import write_text

    write_text(path, csv_text(columns, rows))


def methods(profile, records, arrays, seed, labels) -> dict:
    """How each variant of one seed was made, in what time, what its maker found out, and what has no column."""
    from compress.results.reading import training_share

    own = (of["near_handover_seconds"] for of in arrays.values() if "near_handover_seconds" in of)
    near = min(map(float, own), default=None)  # a variant that met far cores alone has found too much
    found = {}
    for variant in profile.variants:
        if (seed, variant.name) not in records:
            continue
        record = records[seed, variant.name]
        share = training_share(record.details, record.provenance.threads)
        found[variant.name] = {
            "options": variant.model_dump(mode="json", exclude={"name"}),
            "details": record.details,
            "seconds": round(record.seconds + share * (record.train_seconds or 0), 1),
            "measured": measured_beside(profile, record, arrays[seed, variant.name], labels, near)
            if record.status == "ok"
            else {},
        }
    return found


def measured_beside(profile, record, arrays, labels, near: float | None) -> dict:
    """Validation F1; in ms what a start, a new length and a tokenizer cost, and latency over shapes where taken.

    `near`: seconds of a handover between near cores.
    """
    import numpy as np
    from compress.measure.protocol import apart
    from compress.metrics import quality

    f1 = None if profile.no_quality else quality(arrays["logits/validation"], labels["validation"])["f1"]
    found = {"validation_f1": f1, "batch_size": record.measured.batch_size}
    if "cold_seconds" in arrays:
        cold = 1e3 * arrays["cold_seconds"]
        found |= {
            "load_ms": 1e3 * record.measured.load_seconds,
            "first_ms": cold[0, 0],
            "new_length_ms": float(np.median(cold[1:, 0])),
            "same_length_ms": float(np.median(cold[1:, 1])),
            "tokenize_ms": 1e3 * float(np.median(arrays["tokenize_seconds"])),
        }
    found = {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in found.items()}
    if "handover_seconds" in arrays:  # the share of what was timed while the cores were far from each other
        found["apart"] = float(np.mean(apart(arrays["handover_seconds"], near)))
    if "shape_seconds" in arrays:
        shapes = profile.measure.shapes
        axes = {"threads": shapes.threads, "batches": shapes.batches, "lengths": shapes.lengths}
        milliseconds = 1e3 * np.median(arrays["shape_seconds"], -1)
        found["shapes"] = axes | {"milliseconds": [[[float(f"{x:.4g}") for x in r] for r in t] for t in milliseconds]}
    return found


def reliability_rows(measured, labels) -> list[dict]:
    """Confidence and accuracy by bin of every measured variant on the test set."""
    from compress.metrics import reliability, softmax

    return [
        {"variant": name, **bin_}
        for name, arrays in measured.items()
        for bin_ in reliability(softmax(arrays["logits/test"]), labels["test"])
    ]


def flip_rows(profile, records, measured, test, classes) -> list[dict]:
    """The test sentences whose answer most trained variants change; champions are rows that are there already."""
    import numpy as np
    from compress.metrics import softmax
    from compress.results.flips import excerpt, most_flipped

    names = [name for name in measured if records[name].trained and records[name].method != "champion"]
    others = [name for name in names if name != profile.baseline]
    if not others:
        return []
    answers = np.array([measured[name]["logits/test"].argmax(-1) for name in others])
    probabilities = softmax(measured[profile.baseline]["logits/test"])
    baseline = probabilities.argmax(-1)
    return [
        {
            "sentence": i,
            "text": excerpt(test["text"][i]),
            "label": classes[test["label"][i]],
            "answer": classes[baseline[i]],
            "confidence": float(probabilities[i].max()),
            "flipped": flipped,
            "variants": len(others),
        }
        for i, flipped in most_flipped(answers, baseline)
    ]


CARD = """# {variant}

{description}. Classes: {labels}. Method: {method}{of_parent}{options}. Runs on {backend}, arithmetic {precision}.

| F1 on the test set | 95 % interval | points below the fine-tuned model | MB | ms at batch 1 |
|---|---|---|---|---|
| {f1} | {interval} | {drop} | {size_mb:.2f} | {milliseconds} |

To load it, from the repository's folder:

```python
import sys; sys.path.insert(0, "scripts")
from pathlib import Path; from compress.predict import load, load_tokenizer, predict
folder = Path("{folder}")
ids = [row.ids for row in load_tokenizer(folder, {max_length}).encode_batch(["A film that grows on you."])]
print(predict(load(folder, threads={threads}), ids))  # logits, a column per class
```

Or: `python scripts/predict.py --model {folder} "A film that grows on you."`
"""


def write_cards(profile, rows) -> None:
    """A model card for each measured model."""
    from compress.config.profile import run_name

    for row in rows:
        folder = profile.model(run_name(row["variant"], row["seed"], row["device"]))
        if row["status"] == "ok" and folder.exists():
            write_card(profile, folder, row)
            write_measured(folder, row)


def write_card(profile, folder: Path, row) -> None:
    """The model card of a folder; it is not counted among the bytes that inference needs."""
    from compress.files import write_text
    from compress.paths import ROOT
    from compress.storage.artifact import read_artifact

    artifact = read_artifact(folder, verify=False)
    latency, told = row["latency_ms_p50"], row["f1_ci_low"] is not None
    known = ("name", "method", "parent", "timed", "training")
    options = {name: value for name, value in artifact.options.items() if name not in known and value is not None}
    if chosen := artifact.details.get("chosen"):
        options = {"a copy of": chosen} | options
    about = {
        "description": profile.description[:1].upper() + profile.description[1:],
        "labels": ", ".join(artifact.labels),
        "of_parent": f" of {artifact.parent}" if artifact.parent else "",
        "options": f" ({', '.join(f'{name}: {value}' for name, value in options.items())})" if options else "",
        "f1": profile.no_quality if row["f1_test"] is None else f"{row['f1_test']:.4f}",
        "interval": f"{row['f1_ci_low']:.4f} to {row['f1_ci_high']:.4f}" if told else "",
        "drop": f"{row['f1_drop_points']:.2f}" if told else "",
        "milliseconds": "not timed" if latency is None else f"{latency:.2f}",
        "folder": folder.relative_to(ROOT),
        "max_length": artifact.max_length,
    }
    write_text(folder / "README.md", CARD.format(**row | about))


def write_measured(folder: Path, row) -> None:
    """What a service tells of the model, into the model's own folder: it goes wherever the model goes."""
    from compress.files import write_json

    write_json(folder / "measured.json", {name: row[name] for name in ("f1_test", "batch_flip_rate")})


def environment(profile, records) -> dict:
    """Machines, libraries and commits behind the rows, each once."""
    provenances = [record.provenance.model_dump(mode="json") for record in records.values()]
    summary = {
        field: list({str(p[field]): p[field] for p in provenances}.values())
        for field in ("machine", "libraries", "python", "commit", "dirty", "threads", "processes")
    }
    about = {"profile": profile.name, "description": profile.description, "baseline": profile.baseline}
    return about | summary | {"energy_counters": energy_counters()}


def energy_counters() -> list[str]:
    """Names of the counters of energy that this machine's CPU exposes."""
    return sorted(path.name for path in Path("/sys/class/powercap").glob("intel-rapl:*"))


def by_seed(found) -> dict:
    """What is found by (seed, variant), by seed and then by variant."""
    seeds = {}
    for (seed, name), value in found.items():
        seeds.setdefault(seed, {})[name] = value
    return seeds


def write_seeds(path, profile, arrays, labels) -> None:
    """What several seeds say together; no file where there is one seed."""
    from compress.files import remove
    from compress.results import statistics as seeds

    logits = by_seed({key: of["logits/test"] for key, of in arrays.items()})
    if rows := seeds.over_seeds(profile.baseline, logits, labels):
        write_csv(path, seeds.COLUMNS, rows)
    else:
        remove(path)


def write_answers(path, arrays, labels) -> None:
    """What all variants answered and how long it took, for who works a number out anew: answers.npz, without pickles.

    labels/<set>: int64 [sentences]. <seed>/variants: names [variants]; <seed>/<set>: uint16 [variants, sentences], the
    class with the largest logit (test: asked alone; batched_test: in batches). <seed>/timed: names [timed];
    <seed>/latency_seconds [timed, calls, (variant, baseline)] and throughput_seconds [timed, rounds, (...)]: float32.
    """
    import numpy as np
    from compress.files import atomic_path

    asked = [key for key in next(iter(arrays.values()), ()) if key.startswith("logits")]
    found = {f"labels/{name}": truth for name, truth in labels.items() if f"logits/{name}" in asked}
    for seed, of_seed in by_seed(arrays).items():
        found[f"{seed}/variants"] = np.array(list(of_seed))
        for key in asked:
            kind, _, name = key.partition("/")
            answers = np.array([of[key].argmax(-1) for of in of_seed.values()], np.uint16)
            found[f"{seed}/{'batched_' if kind == 'logits_batched' else ''}{name}"] = answers
        timed = {name: of for name, of in of_seed.items() if "latency_seconds" in of}
        if timed:
            found[f"{seed}/timed"] = np.array(list(timed))
            for key in ("latency_seconds", "throughput_seconds"):
                found[f"{seed}/{key}"] = np.array([of[key] for of in timed.values()], np.float32)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **found)


def main(args: argparse.Namespace) -> int:
    import numpy as np
    from compress.config.profile import load_profile
    from compress.data.prepare import load_card, load_splits
    from compress.errors import UserError
    from compress.files import write_json
    from compress.merge import merge
    from compress.storage.record import read_arrays

    profile = load_profile(args.profile)
    seeds = sorted({int(seed) for seed in args.seeds.split()})
    for folder in args.merge:
        print(f"{folder}: {len(merge(profile, folder, seeds, args.device))} records merged")
    try:
        records = read_records(profile, seeds, args.device)
        arrays = {key: read_arrays(profile, record) for key, record in records.items() if record.status == "ok"}
    except UserError:
        for stamp in profile.build.glob(f".*-seed*-{args.device}-*"):  # make's: its stages must look at what they have
            stamp.unlink()
        raise
    splits, card = load_splits(profile), load_card(profile)
    labels = {name: np.array(split["label"]) for name, split in splits.items()}
    records_of, arrays_of = by_seed(records), by_seed(arrays)
    rows = []
    for seed in seeds:
        rows += seed_rows(profile, records_of.get(seed, {}), arrays_of.get(seed, {}), labels)
    results = profile.results_on(args.device)
    write_csv(results / "variants.csv", COLUMNS, rows)
    write_json(results / "methods.json", methods(profile, records, arrays, seeds[0], labels))
    write_json(results / "environment.json", environment(profile, records))
    write_json(results / "data.json", {k: v for k, v in card.items() if k != "key"})
    write_answers(results / "answers.npz", arrays, labels)
    if not profile.no_quality:
        first, measured = records_of[seeds[0]], arrays_of.get(seeds[0], {})
        write_csv(results / "reliability.csv", RELIABILITY, reliability_rows(measured, labels))
        write_csv(results / "flips.csv", FLIPS, flip_rows(profile, first, measured, splits["test"], card["labels"]))
        write_seeds(results / "seeds.csv", profile, arrays, labels["test"])
    write_cards(profile, rows)
    failed = [row["variant"] for row in rows if row["status"] == "failed"]
    for seed in seeds if args.device != "cpu" else seeds[1:]:
        made = sum(row["seed"] == seed for row in rows)
        print(f"seed {seed}: {made} of {len(profile.variants)} variants")
    print(f"{results}: {len(rows)} rows" + (f", FAILED: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    parser = profile_parser(__doc__)
    parser.add_argument("--seeds", default="0", help="seeds to collate, separated by spaces (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="device whose records to collate (default: %(default)s)")
    parser.add_argument(
        "--merge",
        metavar="FOLDER",
        type=Path,
        nargs="+",
        default=[],
        help="first take the records of these folders, build/<profile>/ of other machines; refuses other data or code",
    )
    main_guard(main, parser)
