"""Three rows of the smoke run traced by hand: from the report's tables to the CSV, the record and the raw logits."""

import csv
import hashlib
import json
import re

import numpy as np
import pytest
from sklearn.metrics import f1_score

VARIANTS = ("finetuned", "cluster-8", "finetuned-ort-int8")


def report_cells(text: str, variant: str, column: str) -> dict[str, str]:
    """A variant's cells in the first table of the report that has the column."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        header, _, *body = ([cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines())
        for line in body:
            if line[0] == variant and column in header:
                return dict(zip(header, line, strict=False))
    raise AssertionError(f"no table of the report has {variant} and {column}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_from_the_report_to_the_raw_logits_and_times(smoke, variant):
    folder, _ = smoke
    from datasets import load_from_disk

    report = (folder / "report/smoke/report.md").read_text("utf-8")
    with open(folder / "results/smoke/variants.csv", encoding="utf-8", newline="") as file:
        (row,) = (row for row in csv.DictReader(file) if row["variant"] == variant and row["seed"] == "0")
    record = json.loads((folder / f"build/smoke/records/{variant}.json").read_text("utf-8"))["record"]
    raw = folder / f"build/smoke/predictions/{variant}.npz"

    # report = CSV
    quality = report_cells(report, variant, "F1")
    assert quality["F1"].split()[0] == f"{float(row['f1_test']):.3f}"
    assert quality["Drop"].split()[0] == f"{float(row['f1_drop_points']):.1f}"
    cost = report_cells(report, variant, "ms p50")
    assert cost["MB"] == f"{float(row['size_mb']):.2f}"
    assert cost["faster"] == (f"{float(row['throughput_speedup']):.2f}" if row["throughput_speedup"] else "")
    # CSV = record
    assert float(row["size_mb"]) == pytest.approx(record["sizes"]["bytes"] / 1e6, rel=1e-5)
    assert float(row["peak_rss_mb"]) == pytest.approx(record["measured"]["peak_rss_bytes"] / 1e6, rel=1e-5)
    assert int(row["threads"]) == record["measured"]["threads"]
    # record = raw file
    assert hashlib.sha256(raw.read_bytes()).hexdigest() == record["measured"]["predictions_sha256"]
    # raw logits and times = CSV, by scikit-learn and numpy
    labels = load_from_disk(str(folder / "build/smoke/data/splits"))["test"]["label"][:]
    with np.load(raw) as file:
        arrays = {name: file[name] for name in file.files}
    f1 = f1_score(labels, arrays["logits/test"].argmax(1))
    assert float(row["f1_test"]) == pytest.approx(f1, abs=1e-5)
    with np.load(folder / "build/smoke/predictions/finetuned.npz") as file:
        base = f1_score(labels, file["logits/test"].argmax(1))
    assert float(row["f1_drop_points"]) == pytest.approx(100 * (base - f1), abs=1e-3)
    if "latency_seconds" in arrays:
        ours, baseline = arrays["latency_seconds"].T
        assert int(row["threads"]) == record["provenance"]["threads"]
        assert float(row["latency_speedup"]) == pytest.approx(np.median(baseline / ours), rel=1e-4)
        assert float(row["latency_ms_p50"]) == pytest.approx(1e3 * np.percentile(ours, 50), rel=1e-4)
    else:
        assert row["latency_speedup"] == ""
        assert row["reason"].startswith("not timed")


def test_the_further_tables_are_those_of_the_raw_logits(smoke):
    folder, _ = smoke
    from datasets import load_from_disk

    test = load_from_disk(str(folder / "build/smoke/data/splits"))["test"]
    answers = {}
    for path in (folder / "build/smoke/predictions").glob("*.npz"):
        with np.load(path) as file:
            answers[path.stem] = file["logits/test"]
    with open(folder / "results/smoke/variants.csv", encoding="utf-8", newline="") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    with open(folder / "results/smoke/reliability.csv", encoding="utf-8", newline="") as file:
        bins = [row for row in csv.DictReader(file) if row["variant"] == "finetuned"]
    assert sum(int(row["sentences"]) for row in bins) == len(test)
    gap = sum(int(b["sentences"]) * abs(float(b["accuracy"]) - float(b["confidence"])) for b in bins) / len(test)
    assert gap == pytest.approx(float(rows["finetuned"]["ece_test"]), abs=1e-4)
    with open(folder / "results/smoke/flips.csv", encoding="utf-8", newline="") as file:
        flips = list(csv.DictReader(file))
    rivals = [
        name
        for name, row in rows.items()
        if row["status"] == "ok" and row["trained"] == "True" and row["method"] != "champion" and name != "finetuned"
    ]
    differ = sum(answers[name].argmax(1) != answers["finetuned"].argmax(1) for name in rivals)
    assert len(flips) == min(10, np.count_nonzero(differ))
    assert [int(row["flipped"]) for row in flips] == sorted(differ.tolist(), reverse=True)[: len(flips)]
    for row in flips:
        assert int(row["flipped"]) == differ[int(row["sentence"])]
        assert row["text"].removesuffix(" ...") in " ".join(test["text"][int(row["sentence"])].split())
