"""make check: which claims hold, moved or failed, on committed rows with changes planted and on the smoke run."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace

import pytest
from compress.config.profile import load_profile
from compress.errors import UserError
from compress.report import checking
from compress.results.reading import read_results
from compress.results.rows import VariantRow, read_rows, write_rows
from conftest import ROOT, run

pytestmark = pytest.mark.committed
PROFILE = load_profile("minilm")
RESULTS = read_results(PROFILE)
PYTHON = ".venv/bin/python"


def broken_claims(fresh, differing=None, committed=RESULTS.rows) -> dict[tuple[str, str], str]:
    """The verdicts other than "held", by (variant, claim)."""
    claims = checking.compare(committed, fresh, differing or {})
    return {(claim.variant, claim.what): claim.verdict for claim in claims if claim.verdict != "held"}


def planted(variant: str, rows=RESULTS.rows, **changes) -> list[VariantRow]:
    """The rows with some values of one variant's first seed replaced; a function computes the value from the row."""

    def changed(row):
        values = {name: value(row) if callable(value) else value for name, value in changes.items()}
        return replace(row, **values)

    seed = rows[0].seed
    return [changed(row) if (row.variant, row.seed) == (variant, seed) else row for row in rows]


def run_of(rows, **others) -> checking.ComparedRun:
    files = {"environment": RESULTS.environment, "data": RESULTS.data, "champions": RESULTS.champions}
    return checking.ComparedRun(rows, **(files | others))


def test_equal_results_hold_completely():
    assert broken_claims(RESULTS.rows) == {}


@pytest.mark.parametrize(
    ("column", "value", "verdict"),
    [
        ("size_mb", lambda row: 1.02 * row.size_mb, "failed"),
        ("size_mb", lambda row: 1.005 * row.size_mb, None),
        ("parameters", lambda row: row.parameters + 1, "failed"),
        ("f1_test", lambda row: row.f1_ci_low - 1e-4, "failed"),
        ("f1_test", lambda row: row.f1_ci_high - 1e-4, None),
        ("f1_drop_points", lambda row: row.f1_drop_ci_high + 0.01, "failed"),
        ("status", "skipped", "failed"),
        ("precision", "fp32", "failed"),
        ("latency_ms_p50", None, None),  # no claim is made about an absolute time
        ("latency_speedup", None, "failed"),
        ("latency_speedup", lambda row: 0.91 * row.latency_speedup, None),
        ("latency_speedup", lambda row: 0.88 * row.latency_speedup, "moved"),
        ("latency_speedup", lambda row: 1.12 * row.latency_speedup, "moved"),
        ("latency_speedup", 0.9, "failed"),  # a clear speed-up became a slowdown
        ("peak_rss_mb", lambda row: 2 * row.peak_rss_mb, "moved"),
    ],
)
def test_a_planted_change_breaks_the_claim_of_its_cell(column, value, verdict):
    expected = {("finetuned-ort-int8", column): verdict} if verdict else {}
    assert broken_claims(planted("finetuned-ort-int8", **{column: value})) == expected


def test_a_speedup_holds_inside_the_committed_interval():
    name = "finetuned-ort-int8"
    wide = planted(name, latency_speedup_low=lambda r: 0.7 * r.latency_speedup, latency_speedup_high=99.0)
    for factor, expected in ((0.71, {}), (1.5, {}), (0.69, {(name, "latency_speedup"): "moved"})):
        fresh = planted(name, latency_speedup=lambda row, factor=factor: factor * row.latency_speedup)
        assert broken_claims(fresh, committed=wide) == expected


def test_a_slowdown_with_other_threads_moved():
    name = "finetuned-ort-int8"
    fresh = planted(name, latency_speedup=0.9, threads=1)
    assert broken_claims(fresh) == {(name, "latency_speedup"): "moved"}
    (claim,) = (claim for claim in checking.compare(RESULTS.rows, fresh, {}) if claim.verdict != "held")
    assert claim.why.endswith("threads 1 instead of 2")


def test_a_missing_variant_fails_and_a_new_one_moved():
    without = [row for row in RESULTS.rows if row.variant != "cluster-16"]
    assert broken_claims(without) == {("cluster-16", "row"): "failed"}
    new = [*RESULTS.rows, replace(RESULTS.rows[0], variant="x")]
    assert broken_claims(new) == {("x", "row"): "moved"}


def test_a_variant_that_depends_on_kernels_moves_when_it_is_skipped():
    for status, verdict in (("skipped", "moved"), ("failed", "failed")):
        fresh = planted("torchao-int8-dynamic", status=status, reason="no kernel for it")
        assert broken_claims(fresh) == {("torchao-int8-dynamic", "status"): verdict}


def test_a_few_sentences_are_no_failure_where_the_interval_has_no_width():
    assert broken_claims(planted("finetuned-ort-fp32", f1_drop_points=0.1)) == {}
    expected = {("finetuned-ort-fp32", "f1_drop_points"): "failed"}
    assert broken_claims(planted("finetuned-ort-fp32", f1_drop_points=0.3)) == expected


def test_another_machine_is_named_where_it_explains_a_change():
    there, here = deepcopy(RESULTS.environment), deepcopy(RESULTS.environment)
    there["machine"][0] |= {"cores": 2, "cpu_flags": ["avx2", "avx512_bf16", "avx512_vnni", "avx_vnni"]}
    here["machine"][0] |= {"cores": 4, "cpu_flags": ["avx2"]}
    differing = checking.differences(there, here)
    assert differing["int8"] == "no avx512_vnni here, no avx_vnni here"
    assert differing["bf16"] == "no avx512_bf16 here"
    assert differing["machine"] == "cores 4 instead of 2"
    int8, fp32 = planted("finetuned-ort-int8", latency_speedup=0.9), planted("finetuned-ort-fp32", latency_speedup=0.9)
    for rows, is_named in ((int8, True), (fp32, False)):
        (claim,) = (c for c in checking.compare(RESULTS.rows, rows, differing) if c.verdict != "held")
        assert claim.verdict == "moved"  # on the same kind of machine it would have failed
        assert ("avx512_vnni" in claim.why) is is_named
        assert "cores 4 instead of 2" in claim.why
    bf16 = planted("finetuned-ov-default", precision="fp32")
    assert broken_claims(bf16, differing) == {("finetuned-ov-default", "precision"): "moved"}
    assert checking.differences(RESULTS.environment, RESULTS.environment) == {}


def test_a_champion_that_is_another_variant_moved():
    committed = RESULTS.champions["champion-tiny"]["chosen"]
    other = RESULTS.champions | {"champion-tiny": {"chosen": "cluster-16"}}
    fresh = run_of(planted("finetuned", train_seconds=1.0), champions=other)
    status, text = checking.check_claims(PROFILE, run_of(RESULTS.rows), fresh, [])
    assert status == 0
    assert f"| moved | champion-tiny | chosen | {committed} | cluster-16 |" in text


def test_the_committed_results_themselves_are_no_fresh_run(tmp_path):
    done = run(ROOT, PYTHON, "scripts/check.py", "--fresh", "results/minilm", "--against", "results/minilm")
    assert done.returncode == 1
    assert "there is no fresh run" in done.stderr
    assert "Traceback" not in done.stderr
    for only in ([], ["cluster-16"]):
        with pytest.raises(UserError, match="no fresh run"):
            checking.check_claims(PROFILE, run_of(RESULTS.rows), run_of(RESULTS.rows), only)
    untimed = [row for row in RESULTS.rows if row.variant == "cluster-16"]
    assert checking.check_claims(PROFILE, run_of(RESULTS.rows), run_of(untimed), ["cluster-16"])[0] == 0


def test_seeds_and_scopes_that_were_not_built_are_not_compared():
    changed = planted("finetuned", peak_rss_mb=1.0)
    core = [row for row in changed if row.scope == "core" and not (row.variant == "cluster-16" and row.seed == 0)]
    status, text = checking.check_claims(PROFILE, run_of(RESULTS.rows), run_of(core), [])
    assert status == 1
    assert "1 claims moved, 1 claims failed" in text
    seed_0 = [row for row in core if row.seed == 0]
    assert text == checking.check_claims(PROFILE, run_of(RESULTS.rows), run_of(seed_0), [])[1]


def test_named_variants_are_compared_alone():
    changed = planted("int8-dynamic", rows=planted("finetuned", size_mb=1.0), size_mb=1.0, peak_rss_mb=1.0)
    status, text = checking.check_claims(PROFILE, run_of(RESULTS.rows), run_of(changed), ["int8-dynamic"])
    assert status == 1
    assert "1 claims moved, 1 claims failed" in text
    assert "finetuned" not in text
    for name in ("x", "champion-tiny"):
        with pytest.raises(UserError, match=f"no variant '{name}'"):
            checking.check_claims(PROFILE, run_of(RESULTS.rows), run_of(changed), [name])


def test_without_results_to_compare_with_it_names_the_options(tmp_path):
    for option in ("--against", "--fresh"):
        done = run(ROOT, PYTHON, "scripts/check.py", option, str(tmp_path))
        assert done.returncode == 1
        assert f"{tmp_path}: no variants.csv; run: make all, or name a folder with --against or --fresh" in done.stderr


def test_portable_rows_make_the_same_claims_as_the_rows_they_come_from(tmp_path):
    write_rows(tmp_path / "variants.csv", checking.portable_rows(RESULTS.rows, RESULTS.methods))
    expected = read_rows(tmp_path / "variants.csv", VariantRow)
    assert broken_claims(RESULTS.rows, committed=expected) == {}
    assert {row.method for row in expected if not row.status} == set(checking.KERNEL_DEPENDENT)
    assert all(row.size_mb and row.f1_test is row.latency_speedup is None for row in expected if row.status == "ok")
    grown = planted("cluster-16", size_mb=20.0)
    assert broken_claims(grown, committed=expected) == {("cluster-16", "size_mb"): "failed"}


def test_named_variants_are_rebuilt_and_compared(copy, tmp_path):
    before = (copy / "results/smoke/variants.csv").read_bytes()
    shutil.copytree(copy / "results/smoke", tmp_path / "committed")
    shutil.rmtree(copy / "build/smoke/seed0/finetuned-ort-fp32")
    make = ("make", "check", "PROFILE=smoke", f"AGAINST={tmp_path / 'committed'}", "ONLY=finetuned-ort-fp32")
    done = run(copy, *make)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("| finetuned-ort-fp32 |"))
    committed, fresh = line.split("|")[3:5]
    assert float(committed) == float(fresh)
    assert ", 0 claims failed" in done.stdout
    assert (copy / "results/smoke/variants.csv").read_bytes() == before
    (copy / "results/smoke/variants.csv").unlink()
    assert "no variant 'x'" in run(copy, *make[:-1], "ONLY=x").stderr


def test_the_smoke_run_has_what_is_expected_on_any_machine(smoke, tmp_path):
    folder, _ = smoke
    done = run(folder, "make", "check", "PROFILE=smoke", "AGAINST=tests/expected/smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 claims failed" in done.stdout
    # The expectations say something about every variant, and about the size of each that was built.
    expected = read_rows(ROOT / "tests/expected/smoke/variants.csv", VariantRow)
    assert [row.variant for row in expected] == [variant.name for variant in load_profile("smoke").variants]
    assert all(row.size_mb for row in expected if row.status == "ok")
    assert {row.method for row in expected if not row.status} <= set(checking.KERNEL_DEPENDENT)
    # Planted: a size larger by 2 %, a missing row, other data.
    gone, grown = expected[1], replace(expected[2], size_mb=expected[2].size_mb / 1.02)
    (tmp_path / "data.json").write_text(json.dumps({"fingerprint": "of other data"}))
    write_rows(tmp_path / "variants.csv", [expected[0], grown, *expected[3:], replace(gone, variant="never-built")])
    done = run(folder, "make", "check", "PROFILE=smoke", f"AGAINST={tmp_path}")
    assert done.returncode == 2
    lines = [[cell.strip() for cell in line.split("|")[1:6]] for line in done.stdout.splitlines()]
    assert ["failed", "never-built", "row", "present", "missing"] in lines
    assert ["moved", gone.variant, "row", "missing", "new"] in lines
    assert ["failed", grown.variant, "size_mb"] in [line[:3] for line in lines]
    assert ["failed", "", "data", "of other dat"] in [line[:4] for line in lines]
    assert ", 3 claims failed" in done.stdout
