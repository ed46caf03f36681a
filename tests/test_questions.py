"""The report's questions: families from methods and options, choices by validation, costs, calibration and flips."""

from types import SimpleNamespace

import collate
import numpy as np
import pytest
import render
from compress.config.profile import load_profile
from compress.metrics import expected_calibration_error, reliability
from compress.report import captions, questions, tables
from compress.results.flips import excerpt, most_flipped
from compress.results.reading import read_results

RESULTS = read_results(load_profile("minilm"))
ROWS = RESULTS.variants
BASE = next(row for row in ROWS if row["variant"] == RESULTS.environment["baseline"])


def test_a_variants_quality_is_the_mean_of_its_seeds_and_its_cost_the_first_seeds():
    pooled = {row["variant"]: row for row in RESULTS.seeds}
    assert len(ROWS) == len({row["variant"] for row in RESULTS.rows})
    for row in ROWS:
        seeds = [other for other in RESULTS.rows if other["variant"] == row["variant"]]
        assert all(row[column] == seeds[0][column] for column in ("size_mb", "latency_ms_p50", "peak_rss_mb", "status"))
        if row["f1_test"] is not None:
            for column in ("f1_test", "f1_tweets", "ece_test", "flip_rate"):
                assert row[column] == pytest.approx(np.mean([other[column] for other in seeds]))
            told = pooled[row["variant"]]
            assert row["f1_drop_points"] == pytest.approx(told["drop_mean"], abs=1e-4)
            assert (row["f1_drop_ci_low"], row["f1_drop_ci_high"]) == (told["drop_ci_low"], told["drop_ci_high"])
            assert told["f1_ci_low"] == row["f1_ci_low"] < row["f1_test"] < row["f1_ci_high"]
            assert row["mcnemar_p_holm"] == told["mcnemar_p_holm"]
        if row["latency_speedup"] is not None:
            assert row["latency_ms"] * row["latency_speedup"] == pytest.approx(BASE["latency_ms_p50"])


def test_what_is_compared_one_at_a_time_loses_only_if_it_does_on_every_seed():
    rows = [
        {"variant": name, "seed": seed, "f1_test": f1, "size_mb": 2.0, "latency_speedup": None}
        for name, scores in {"old": (0.80, 0.82), "bad": (0.79, 0.80), "mixed": (0.79, 0.83)}.items()
        for seed, f1 in enumerate(scores)
    ]
    by_name = {row["variant"]: row for row in rows}
    asked = [("badly", "bad", "old"), ("now and then", "mixed", "old"), ("never made", "none", "old")]
    text = render.comparisons(by_name, rows, asked)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:4]]
    assert cells[0] == ["badly", "bad", "old", "-1.5", "-2.0 to -1.0", "1.00", ""]
    assert cells[1] == ["now and then", "mixed", "old", "+0.0", "-1.0 to +1.0", "1.00", ""]
    assert text.endswith("F1 points lost by it on every seed: badly (-1.5).")


def test_a_sustained_rate_lies_between_the_one_that_passed_and_the_one_that_failed():
    def server(*runs):
        columns = {"layout": "open-loop", "shed_fraction": 0.0, "error_fraction": 0.0}
        return [columns | {"offered_rps": rate, "latency_ms_p99": p99} for rate, p99 in runs]

    quick, slow = server((800, 20), (1000, 90), (1250, 200)), server((80, 20), (100, 130), (125, 131), (200, None))
    assert (tables.sustained(slow, 130), tables.too_much(slow, 130)) == (100, 125)
    assert captions.lead({"a": quick, "b": slow}, "a", "b", 130).startswith("10.0 times (8.0 to 12.5: ")
    assert captions.lead({"a": quick[:2], "b": slow}, "a", "b", 130) == "10.0 times"
    assert tables.sustained(server((10, 900)), 130) is None


def methods_of(**f1: float) -> dict:
    """Methods of variants that are int8 files of the baseline, with a validation F1 each."""
    onnx = {"method": "onnx", "precision": "int8-dynamic", "parent": "base"}
    base = {"base": {"options": {"method": "finetune"}, "measured": {"validation_f1": 0.9}}}
    return base | {name: {"options": onnx, "measured": {"validation_f1": value}} for name, value in f1.items()}


def row_of(variant: str, **cells) -> dict:
    return {"variant": variant, "trained": "True", "method": "onnx", "f1_test": 0.8} | cells


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("int8-dynamic", {"int8"}),
        ("qat-int4", {"int4"}),
        ("mixed-precision", {"int8", "int4"}),
        ("ov-int8-weights", {"int8"}),
        ("ov-codebook-weights", {"clustering"}),
        ("optimum-ort-int8", {"int8"}),
        ("optimum-ort-o4", {"16-bit floats"}),
        ("bf16", {"16-bit floats"}),
        ("finetuned-ort-fp32", set()),
        ("prune-fisher-90", {"pruning"}),
        ("distill-3x384-v12000-ort-int8", {"smaller student", "int8"}),
        ("tiny-deep-compression", {"smaller student", "pruning", "clustering"}),
        ("deep-compression", {"pruning", "clustering"}),
    ],
)
def test_ingredients_are_those_of_the_variant_and_its_parents(variant, expected):
    assert questions.ingredients(variant, RESULTS.methods) == expected


def test_what_calls_itself_int8_or_is_pruned_is_never_without_an_ingredient():
    alone = [
        name
        for name, method in RESULTS.methods.items()
        if method["options"]["method"] != "champion" and not questions.ingredients(name, RESULTS.methods)
    ]
    assert "finetuned" in alone
    sizes = {row["variant"]: row["size_ratio"] for row in ROWS}
    assert all(0.99 < sizes[name] < 1.01 for name in alone)  # whoever is smaller has one


def test_within_a_budget_validation_chooses_and_never_the_test_set():
    rows = [
        row_of("best-on-test", size_mb=9.0, f1_test=0.99),
        row_of("best-on-validation", size_mb=8.0),
        row_of("as-good-but-larger", size_mb=8.5),
        row_of("too-large", size_mb=10.1),
        row_of("not-measured", size_mb=None),
    ]
    f1 = {"best-on-test": 0.7, "best-on-validation": 0.8, "as-good-but-larger": 0.8, "too-large": 0.9}
    methods = methods_of(**f1, **{"not-measured": 0.9})
    assert questions.within(rows, methods, "size_mb", 10.0)["int8"]["variant"] == "best-on-validation"
    assert questions.within(rows, methods, "size_mb", 1.0) == {"int8": None}
    assert questions.winner({"int8": None}, methods) is None


def test_a_choice_on_the_committed_rows_is_the_best_of_its_family_that_fits():
    for limit in questions.BYTES_MB:
        choice = questions.within(ROWS, RESULTS.methods, "size_mb", limit)
        for row in questions.compressed(ROWS, RESULTS.methods):
            chosen = choice[questions.family(row["variant"], RESULTS.methods)]
            f1 = RESULTS.methods[row["variant"]]["measured"]["validation_f1"]
            assert row["size_mb"] > limit or RESULTS.methods[chosen["variant"]]["measured"]["validation_f1"] >= f1
            assert chosen is None or chosen["size_mb"] <= limit


def test_cost_is_threads_over_throughput_times_the_price():
    row = {"threads": 2.0, "throughput_per_s": 500.0}
    assert questions.core_seconds(row) == pytest.approx(4000)
    assert questions.dollars(row) == pytest.approx(4000 / 3600 * questions.PRICE_PER_CORE_HOUR)
    _, body = questions.cost_table(ROWS, RESULTS.methods, BASE)
    seconds = [float(line[5]) for line in body]
    assert seconds[1:] == sorted(seconds[1:])
    assert float(body[1][7]) == pytest.approx(seconds[0] / seconds[1], abs=0.1)


def test_the_bins_add_up_to_the_calibration_error():
    random = np.random.default_rng(0)
    positive = random.random(500)
    probabilities, labels = np.stack([1 - positive, positive], 1), random.integers(0, 2, 500)
    bins = reliability(probabilities, labels)
    assert sum(b["sentences"] for b in bins) == 500
    gap = sum(b["sentences"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / 500
    assert gap == pytest.approx(expected_calibration_error(probabilities, labels))


def test_the_sentences_that_most_variants_flip_come_first():
    baseline = np.array([0, 1, 1, 0])
    answers = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 0]])
    assert most_flipped(answers, baseline) == [(1, 3), (3, 2)]
    assert most_flipped(answers, baseline, examples=1) == [(1, 3)]
    assert excerpt("a  b\nc") == "a b c"
    assert len(excerpt("word " * 100)) <= 124


def test_a_quoted_sentence_stays_text_in_markdown():
    row = {
        "text": "costs $40 | *so* [what]",
        "label": "a",
        "answer": "b",
        "confidence": 0.5,
        "flipped": 3,
        "variants": 4,
    }
    _, ((text, *_),) = questions.flips_table([row])
    assert text == r"costs \$40 \| \*so\* \[what\]"


def test_flips_are_counted_over_trained_variants_and_no_champion():
    def logits(*answers):
        return {"logits/test": np.array([[1.0, 0.0] if answer == 0 else [0.0, 1.0] for answer in answers])}

    measured = {
        "base": logits(0, 1, 1),
        "a": logits(0, 0, 1),
        "champion": logits(0, 0, 0),
        "untrained": logits(1, 0, 0),
    }
    records = {
        name: SimpleNamespace(trained=name != "untrained", method="champion" if name == "champion" else "x")
        for name in measured
    }
    test = {"text": ["first", "second", "third"], "label": [0, 0, 1]}
    (row,) = collate.flip_rows(SimpleNamespace(baseline="base"), records, measured, test, ["negative", "positive"])
    assert row | {"confidence": None} == {
        "sentence": 1,
        "text": "second",
        "label": "negative",
        "answer": "positive",
        "confidence": None,
        "flipped": 1,
        "variants": 1,
    }
    assert row["confidence"] == pytest.approx(1 / (1 + np.exp(-1)))
