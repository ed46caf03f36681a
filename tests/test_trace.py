"""Rows of the smoke run checked by independent code: from the report's tables to CSV, record, raw logits and times."""

import hashlib
import json
import re

import numpy as np
import pytest
from compress.config.profile import load_profile
from compress.storage.artifact import TOKENIZER_FILES
from conftest import read_csv
from datasets import load_from_disk
from sklearn.metrics import f1_score

SEED0 = "build/smoke/seed0"


def report_cells(text: str, variant: str, column: str) -> dict[str, str]:
    """A variant's cells in the first table of the report that has the column."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        header, _, *body = ([cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines())
        for line in body:
            if line[0].split(" (")[0] == variant and column in header:  # a champion's name may follow in brackets
                return dict(zip(header, line, strict=False))
    raise AssertionError(f"no table of the report has {variant} and {column}")


def arrays_of(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize("variant", [variant.name for variant in load_profile("smoke").variants])
def test_a_row_of_the_report_comes_from_the_raw_logits_and_times(smoke, variant):
    folder, _ = smoke
    report = (folder / "report/smoke/report.md").read_text("utf-8")
    (row,) = (row for row in read_csv(folder / "results/smoke/variants.csv") if row["variant"] == variant)
    if row["status"] != "ok":
        pytest.skip(row["reason"])
    built = folder / SEED0 / variant
    record = json.loads((built / "record.json").read_text("utf-8"))["record"]

    # report = CSV
    quality = report_cells(report, variant, "ECE")
    assert quality["F1"].split()[0] == f"{float(row['f1_test']):.3f}"
    assert quality["Drop"].split()[0] == f"{float(row['f1_drop_points']):.1f}"
    cost = report_cells(report, variant, "All s")
    assert cost["MB"] == f"{float(row['size_mb']):.2f}"
    if row["throughput_speedup"]:
        assert cost["faster"] == f"{float(row['throughput_speedup']):.2f}"
    # CSV = files
    listed = json.loads((built / "artifact.json").read_text("utf-8"))["files"]
    size = sum((built / name).stat().st_size for name in listed if name not in TOKENIZER_FILES)
    assert float(row["size_mb"]) == pytest.approx(size / 1e6, rel=1e-5)
    # CSV = record
    assert float(row["size_mb"]) == pytest.approx(record["sizes"]["bytes"] / 1e6, rel=1e-5)
    assert record["artifact_sha256"] == hashlib.sha256((built / "artifact.json").read_bytes()).hexdigest()
    # CSV = raw logits and times, by scikit-learn and NumPy
    labels = load_from_disk(str(folder / "build/smoke/data/seed0/splits"))["test"]["label"][:]
    predictions = arrays_of(built / "predictions.npz")
    f1 = f1_score(labels, predictions["logits/test"].argmax(1))
    assert float(row["f1_test"]) == pytest.approx(f1, abs=1e-5)
    base = f1_score(labels, arrays_of(folder / SEED0 / "finetuned/predictions.npz")["logits/test"].argmax(1))
    assert float(row["f1_drop_points"]) == pytest.approx(100 * (base - f1), abs=1e-3)
    passes = [arrays_of(path) for path in sorted(built.glob("timing-*.npz"))]
    if passes:
        assert len(passes) == load_profile("smoke").measure.passes
        ours, baseline = np.concatenate([arrays["latency_seconds"] for arrays in passes]).T
        assert int(row["threads"]) == json.loads(str(passes[0]["about"]))["threads"]
        assert float(row["latency_speedup"]) == pytest.approx(np.median(baseline / ours), rel=1e-4)
        assert float(row["latency_ms_p50"]) == pytest.approx(1e3 * np.percentile(ours, 50), rel=1e-4)
    else:
        assert int(row["threads"]) == json.loads(str(predictions["about"]))["threads"]
        assert row["latency_speedup"] == ""
        assert row["reason"].startswith("not timed")
    if row["peak_rss_mb"]:
        about = json.loads(str(arrays_of(built / "cold.npz")["about"]))
        assert float(row["peak_rss_mb"]) == pytest.approx(about["peak_rss_bytes"] / 1e6, rel=1e-5)


def test_reliability_and_flips_come_from_the_raw_logits(smoke):
    folder, _ = smoke
    test = load_from_disk(str(folder / "build/smoke/data/seed0/splits"))["test"]
    rows = {row["variant"]: row for row in read_csv(folder / "results/smoke/variants.csv")}
    predicted = {
        name: arrays_of(folder / SEED0 / name / "predictions.npz")["logits/test"].argmax(1)
        for name, row in rows.items()
        if row["status"] == "ok"
    }
    bins = [row for row in read_csv(folder / "results/smoke/reliability.csv") if row["variant"] == "finetuned"]
    assert sum(int(row["sentences"]) for row in bins) == len(test)
    gap = sum(int(b["sentences"]) * abs(float(b["accuracy"]) - float(b["confidence"])) for b in bins) / len(test)
    assert gap == pytest.approx(float(rows["finetuned"]["ece_test"]), abs=1e-4)
    flips = read_csv(folder / "results/smoke/flips.csv")
    trained = [name for name in predicted if rows[name]["trained"] == "True" and name != "finetuned"]
    differ = sum(predicted[name] != predicted["finetuned"] for name in trained)
    assert len(flips) == min(10, np.count_nonzero(differ))
    assert [int(row["flipped"]) for row in flips] == sorted(differ.tolist(), reverse=True)[: len(flips)]
    for row in flips:
        assert int(row["flipped"]) == differ[int(row["sentence"])]
        assert int(row["variants"]) == len(trained)
        assert row["text"].removesuffix(" ...") in " ".join(test["text"][int(row["sentence"])].split())
