"""make check: what it calls held, moved and failed, on committed rows with changes planted, and on the smoke run."""

import copy
import csv
import json
import shutil

import check
import pytest
from compress.config.profile import load_profile
from compress.results.reading import NOISY, read_results
from conftest import ROOT, run

RESULTS = read_results(load_profile("minilm"))


def verdicts(fresh, differing=None) -> dict[tuple[str, str], str]:
    """What did not hold, by (variant, claim)."""
    claims = check.compare(RESULTS.rows, fresh, differing or {})
    return {(claim.variant, claim.what): claim.verdict for claim in claims if claim.verdict != "held"}


def planted(variant: str, **changes) -> list[dict]:
    """The committed rows with some cells of one variant set, or what a function makes of the row."""
    rows = copy.deepcopy(RESULTS.rows)
    (row,) = (row for row in rows if row["variant"] == variant and row["seed"] == RESULTS.rows[0]["seed"])
    row |= {column: value(row) if callable(value) else value for column, value in changes.items()}
    return rows


def test_the_same_results_hold_whole():
    assert verdicts(RESULTS.rows) == {}


@pytest.mark.parametrize(
    ("column", "value", "verdict"),
    [
        ("size_mb", lambda row: 1.02 * row["size_mb"], "failed"),
        ("size_mb", lambda row: 1.005 * row["size_mb"], None),
        ("parameters", lambda row: row["parameters"] + 1, "failed"),
        ("f1_test", lambda row: row["f1_ci_low"] - 1e-4, "failed"),
        ("f1_test", lambda row: row["f1_ci_high"] - 1e-4, None),
        ("f1_drop_points", lambda row: row["f1_drop_ci_high"] + 0.01, "failed"),
        ("status", "skipped", "failed"),
        ("precision", "fp32", "failed"),
        ("latency_ms_p50", None, None),  # nothing is claimed of a time by itself
        ("latency_speedup", None, "failed"),
        ("latency_speedup", lambda row: 0.9 * row["latency_speedup"], None),
        ("latency_speedup", lambda row: 0.5 * row["latency_speedup"], "moved"),
        ("latency_speedup", 0.9, "failed"),  # a speed-up that is none any more
        ("peak_rss_mb", lambda row: 2 * row["peak_rss_mb"], "moved"),
    ],
)
def test_a_planted_change_is_told_by_its_cell(column, value, verdict):
    expected = {("finetuned-ort-int8", column): verdict} if verdict else {}
    assert verdicts(planted("finetuned-ort-int8", **{column: value})) == expected


def test_a_few_variants_are_made_and_checked_alone(smoke, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(smoke[0], folder, symlinks=True)
    before = (folder / "results/smoke/variants.csv").read_bytes()
    shutil.copytree(folder / "results/smoke", tmp_path / "committed")
    shutil.rmtree(folder / "build/smoke/models/finetuned-ort-int8")

    def check_only(*names):
        command = (
            ".venv/bin/python",
            "scripts/check.py",
            "--profile",
            "smoke",
            "--against",
            str(tmp_path / "committed"),
        )
        return run(folder, *command, "--only", *names)

    done = check_only("finetuned-ort-int8")
    assert "finetuned: up to date" in done.stdout
    assert "finetuned-ort-int8: done" in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("| finetuned-ort-int8 |")]
    f1, here = lines[0].split("|")[2:4]
    assert float(f1) == float(here)
    assert "0 claims failed" in done.stdout
    assert done.returncode == 0
    assert "cluster-8" not in done.stdout
    assert (folder / "results/smoke/variants.csv").read_bytes() == before
    assert "no variant 'x'" in check_only("x").stderr
    assert "chosen among all variants" in check_only("champion-tiny").stderr


def test_times_of_a_busy_machine_have_moved_and_not_failed():
    reason = f"{NOISY}: the baseline beside it took 3.0 times its usual time"
    fresh = planted("finetuned-ort-int8", latency_speedup=None, throughput_speedup=None, reason=reason)
    assert set(verdicts(fresh).values()) == {"moved"}


def test_a_variant_that_is_missing_fails_and_a_new_one_is_told():
    without = [row for row in RESULTS.rows if row["variant"] != "cluster-16"]
    assert verdicts(without) == {("cluster-16", "row"): "failed"}
    new = [*RESULTS.rows, RESULTS.rows[0] | {"variant": "x"}]
    assert verdicts(new) == {("x", "row"): "moved"}


def test_what_hangs_on_measured_times_moves_where_others_fail():
    assert verdicts(planted("champion-fast", size_mb=1.0)) == {("champion-fast", "size_mb"): "moved"}
    for status, verdict in (("skipped", "moved"), ("failed", "failed")):
        skipped = planted("torchao-int8-dynamic", status=status, reason="no kernel for it")
        assert verdicts(skipped) == {("torchao-int8-dynamic", "status"): verdict}


def test_a_handful_of_sentences_is_no_failure_where_the_interval_has_no_width():
    assert verdicts(planted("finetuned-ort-fp32", f1_drop_points=0.1)) == {}
    assert verdicts(planted("finetuned-ort-fp32", f1_drop_points=0.3)) == {
        ("finetuned-ort-fp32", "f1_drop_points"): "failed"
    }


def test_another_machine_is_named_where_it_bears_on_what_moved():
    there, other = copy.deepcopy(RESULTS.environment), copy.deepcopy(RESULTS.environment)
    there["machine"][0] |= {"cores": 2, "cpu_flags": ["avx2", "avx512_bf16", "avx512_vnni", "avx_vnni"]}
    other["machine"][0] |= {"cores": 4, "cpu_flags": ["avx2"]}
    differing = check.differences(there, other)
    assert differing["int8"] == "no avx512_vnni here, no avx_vnni here"
    assert differing["bf16"] == "no avx512_bf16 here"
    assert differing["machine"] == "cores 4 for 2"
    int8, fp32 = planted("finetuned-ort-int8", latency_speedup=0.9), planted("finetuned-ort-fp32", latency_speedup=0.9)
    for rows, has in ((int8, True), (fp32, False)):
        (claim,) = (c for c in check.compare(RESULTS.rows, rows, differing) if c.verdict != "held")
        assert claim.verdict == "moved"  # on a like machine it would have failed
        assert ("avx512_vnni" in claim.why) is has
        assert "cores 4 for 2" in claim.why
    bf16 = planted("finetuned-ov-default", precision="fp32")
    assert verdicts(bf16, differing) == {("finetuned-ov-default", "precision"): "moved"}
    assert check.differences(RESULTS.environment, RESULTS.environment) == {}


def test_the_smoke_run_upholds_what_is_expected_on_any_machine(smoke, tmp_path):
    folder, _ = smoke
    done = run(folder, "make", "check", "PROFILE=smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 claims failed" in done.stdout
    # What is expected claims something of every variant, and of sizes wherever one is measured.
    with open(ROOT / "tests/expected/smoke/variants.csv", encoding="utf-8", newline="") as file:
        expected = list(csv.DictReader(file))
    assert [row["variant"] for row in expected] == [variant.name for variant in load_profile("smoke").variants]
    assert all(row["size_mb"] for row in expected if row["status"] == "ok")
    unclaimed = {row["method"] for row in expected if not row["status"]}
    assert unclaimed == set(check.BY_TIME)
    # One size grown by 2 %, one row taken out: both told, and the exit status tells.
    gone, grown = expected[1]["variant"], expected[2]
    grown["size_mb"] = f"{float(grown['size_mb']) / 1.02:.6g}"
    (tmp_path / "data.json").write_text(json.dumps({"fingerprint": "of other data"}))
    with open(tmp_path / "variants.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, expected[0])
        writer.writeheader()
        writer.writerows([*expected[:1], *expected[2:], expected[1] | {"variant": "not-made"}])
    done = run(folder, "make", "check", "PROFILE=smoke", f"AGAINST={tmp_path}")
    assert done.returncode == 2
    told = [[cell.strip() for cell in line.split("|")[1:6]] for line in done.stdout.splitlines()]
    assert ["failed", "not-made", "row", "there", "missing"] in told
    assert ["moved", gone, "row", "none", "new"] in told
    assert [line[:3] for line in told if line[1:3] == [grown["variant"], "size_mb"]] == [
        ["failed", grown["variant"], "size_mb"]
    ]
    assert ["failed", "", "data", "of other dat"] in [line[:4] for line in told]
    assert ", 3 claims failed" in done.stdout


def test_without_anything_to_compare_with_it_says_what_to_give(smoke, tmp_path):
    done = run(smoke[0], ".venv/bin/python", "scripts/check.py", "--profile", "smoke", "--against", str(tmp_path))
    assert done.returncode == 1
    assert "--against" in done.stderr
