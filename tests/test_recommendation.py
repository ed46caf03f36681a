"""make recommend and the decision page: the best within limits, the limit that excludes all, the best for each need."""

from dataclasses import replace
from itertools import product

import pytest
from compress.config.profile import load_profile
from compress.report import comparisons, pages, recommendation
from compress.results.reading import read_results
from conftest import ROOT, run

pytestmark = pytest.mark.committed
PROFILE = load_profile("minilm")
RESULTS = read_results(PROFILE)
CANDIDATES = comparisons.recommendable(RESULTS)
PAGE = pages.report_pages(PROFILE, RESULTS)["decide"]
LOSES = pages.page_templates(PROFILE, RESULTS).filters["loses"]
SCRIPT = (".venv/bin/python", "scripts/recommend.py")
NOT_SHOWN = "No variant within the limits is shown to keep the quality."


@pytest.mark.parametrize("limits", [{"max_mb": 25, "max_ms": 2}, {"max_mb": 10}, {"max_mb": 5}, {"min_f1": 0.82}])
def test_the_recommended_variant_keeps_the_quality_if_any_does_and_is_best_on_validation(limits):
    base = comparisons.baseline_row(RESULTS)
    fitting = [
        row
        for row in CANDIDATES
        if row.size_mb <= limits.get("max_mb", 1e9)
        and ("max_ms" not in limits or (row.text_latency_ms is not None and row.text_latency_ms <= limits["max_ms"]))
        and base.f1_test - row.f1_drop_points / 100 >= limits.get("min_f1", 0)
    ]
    kept = [row for row in fitting if row.non_inferior or row.variant == base.variant]
    best = recommendation.best(CANDIDATES, limits)
    assert best in (kept or fitting)
    assert best.validation_f1 == max(row.validation_f1 for row in kept or fitting)
    status, text = pages.recommend(PROFILE, RESULTS, limits)
    assert status == 0
    f1 = base.f1_test - best.f1_drop_points / 100
    assert text.startswith(f"{best.variant}: F1 {f1:.3f}, {best.size_mb:.2f} MB")
    assert f"make serve PROFILE=minilm MODEL={best.variant}" in text
    assert (NOT_SHOWN in text) == (not kept)


def test_a_variant_that_keeps_the_quality_is_preferred_to_a_better_one_on_validation():
    row = CANDIDATES[0]
    kept, lost, untested = (
        replace(row, method="onnx", non_inferior=verdict, measured={"validation_f1": f1})
        for verdict, f1 in ((True, 0.80), (False, 0.82), (None, 0.84))
    )
    assert recommendation.best([lost, kept, untested], {}) == kept
    assert recommendation.best([lost, untested], {}) == untested
    assert recommendation.meets_margin(comparisons.baseline_row(RESULTS))


def grid() -> dict[tuple, dict]:
    """The limits of each cell of the decision page by (MB, ms); None stands for any."""
    sizes, times = (None, *comparisons.DECISION_MB), (None, *comparisons.DECISION_MS)
    return {
        (mb, ms): {name: limit for name, limit in (("max_mb", mb), ("max_ms", ms)) if limit}
        for mb, ms in product(sizes, times)
    }


def test_a_looser_limit_never_leads_to_a_worse_choice():
    def rank(row) -> tuple:
        return (row is not None, row is not None and row.non_inferior is True, row.validation_f1 if row else 0)

    ranks = {cell: rank(recommendation.best(CANDIDATES, limits)) for cell, limits in grid().items()}
    assert len(set(ranks.values())) > 2
    for (mb, ms), (other_mb, other_ms) in product(ranks, ranks):
        if (mb or 1e9) >= (other_mb or 1e9) and (ms or 1e9) >= (other_ms or 1e9):
            assert ranks[mb, ms] >= ranks[other_mb, other_ms]


def test_the_decision_page_and_the_command_agree_in_every_cell():
    table = PAGE.split("| Size at most |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [cell.strip() for line in table for cell in line.split("|")[2:-1]]
    for cell, limits in zip(cells, grid().values(), strict=True):
        if limits:
            _, text = pages.recommend(PROFILE, RESULTS, limits)
            name = text.partition(":")[0]
            assert cell.startswith(f"`{name}`{'†' if NOT_SHOWN in text else ''} (")
    assert cells[0].startswith(f"`{recommendation.best(CANDIDATES, {}).variant}` (")
    assert 0 < sum("†" in cell for cell in cells) < len(cells)


def test_the_models_of_the_grid_are_listed_with_intervals_at_home_and_out_of_domain():
    chosen = {row.variant: row for limits in grid().values() if (row := recommendation.best(CANDIDATES, limits))}
    for row in chosen.values():
        (line,) = (
            line for line in PAGE.splitlines() if line.startswith(f"| `{row.variant}` | {row.comparable_f1:.3f}")
        )
        assert f"[{row.f1_drop_ci_low:z.1f}, {row.f1_drop_ci_high:z.1f}]" in line
        assert f"[{row.ood_drop_low:z.1f}, {row.ood_drop_high:z.1f}]" in line


def test_without_limits_the_command_prints_the_answers_of_the_decision_page():
    status, text = pages.recommend(PROFILE, RESULTS, {})
    answers = recommendation.answers(RESULTS)
    assert status == 0
    assert text.count("make model ") == len(answers)
    for answer in answers:
        row = answer["row"]
        head = f"({row.backend}), {row.size_mb:.1f} MB, {row.text_latency_ms:.2f} ms per sentence"
        losses = f"{LOSES(row)} F1 points on the test sentences; on other domains it {LOSES(row, away=True)} points"
        command = f"make model PROFILE=minilm NAME={row.variant}\n"
        own = text.split(f"For {answer['need']}:\n")[1].split("\n\n")[0] + "\n"
        on_page = PAGE.split(f"**For {answer['need']}:**")[1].split("\n**For")[0]
        for part in (row.variant, head, losses, command):
            assert part in own
            assert part in on_page


def test_the_limit_that_was_widened_after_the_results_is_stated_with_the_models_that_need_it():
    needed = comparisons.beyond((of["row"] for of in recommendation.answers(RESULTS)), 1.0, RESULTS)
    assert needed
    report = pages.page_templates(PROFILE, RESULTS).get_template("report.md.j2").render()
    stated = PAGE.split("The limit on validation was 1 point until")[1].split("\n\n")[0]
    threat = report.split("was 1 F1 point until")[1].split("\n- ")[0]
    for row in needed:
        assert f"`{row.variant}` ({comparisons.validation_loss(row, RESULTS):.2f} points" in stated
        assert f"`{row.variant}`" in threat


def test_untrained_unmeasured_and_rarely_trained_variants_are_never_recommended():
    assert all(row.trained and row.f1_test is not None and row.seeds == 3 for row in CANDIDATES)
    assert any(row.trained and row.f1_test is not None and row.seeds == 1 for row in RESULTS.variants)
    chosen = next(row.variant for row in CANDIDATES if row.variant != PROFILE.baseline)
    untrained = [replace(row, trained=False) if row.variant == chosen else row for row in RESULTS.rows]
    once = [row for row in RESULTS.rows if row.variant != chosen or row.seed == 0]
    seeds = [replace(row, seeds=1) if row.variant == chosen else row for row in RESULTS.seeds]
    facts = RESULTS.methods | {chosen: RESULTS.methods[chosen] | {"measured": {}}}  # no F1 on validation
    for change in ({"rows": untrained}, {"rows": once, "seeds": seeds}, {"methods": facts}):
        names = {row.variant for row in comparisons.recommendable(replace(RESULTS, **change))}
        assert names == {row.variant for row in CANDIDATES} - {chosen}
    assert not recommendation.fits(replace(CANDIDATES[0], text_latency_ms=None), {"max_ms": 1e9})


def test_among_equals_the_smaller_is_recommended():
    small, large = (
        replace(CANDIDATES[0], variant=name, size_mb=size) for name, size in (("small", 1.0), ("large", 2.0))
    )
    assert recommendation.best([large, small], {}) == small


def only(row) -> tuple:
    """The answer for results that hold this variant and the baseline alone."""
    results = replace(RESULTS, rows=[of for of in RESULTS.rows if of.variant in (row.variant, PROFILE.baseline)])
    return pages.recommend(PROFILE, results, {"max_mb": row.size_mb})


def test_a_recommendation_says_how_to_build_that_model_alone():
    row = next(row for row in CANDIDATES[1:] if row.size_ratio > 1)
    _, text = only(row)
    assert text.startswith(f"{row.variant}: F1")
    assert f"make model PROFILE=minilm NAME={row.variant}\n" in text


def test_the_four_answers_keep_the_quality_and_are_the_best_for_their_need():
    found = {need: line["row"] for line in recommendation.answers(RESULTS) for need in line["need"].split(" or ")}
    assert len(found) == 4
    assert len({row.variant for row in found.values()}) == len(recommendation.answers(RESULTS))
    rows = [row for row in RESULTS.variants if row.non_inferior and row.trained and row.size_mb and row.seeds == 3]
    assert {row.variant for row in found.values()} <= {row.variant for row in rows}
    words = ("without training beyond", "time per", "smallest", "depend on the batch")
    first, fastest, smallest, most = (next(row for need, row in found.items() if word in need) for word in words)
    base = comparisons.baseline_row(RESULTS).validation_f1
    near = [row for row in rows if row.validation_f1 >= base - comparisons.TOLERANCE / 100]
    assert smallest.size_mb == min(row.size_mb for row in near)
    assert fastest.text_latency_ms == min(row.text_latency_ms or 1e9 for row in near)
    assert most.throughput_speedup == max(row.throughput_speedup or 0 for row in near if row.batch_flip_rate == 0)
    assert first.parent == PROFILE.baseline
    assert not RESULTS.methods[first.variant]["options"].get("training")


def test_a_champion_is_recommended_by_its_variants_name_with_what_it_loses():
    chosen = RESULTS.champions["champion-tiny"]["chosen"]
    row = next(row for row in RESULTS.variants if row.variant == chosen)
    _, text = only(row)
    assert text.startswith(f"{chosen}:")
    assert "champion-tiny" in text.splitlines()[0]
    assert (
        f"It {LOSES(row)} F1 points on the test sentences; on other domains it {LOSES(row, away=True)} points" in text
    )
    assert ("It keeps the quality:" in text) == bool(row.non_inferior)


def test_without_a_fit_the_binding_limit_is_named():
    least = min(row.size_mb for row in CANDIDATES)
    status, text = pages.recommend(PROFILE, RESULTS, {"max_mb": 0.001, "min_f1": 0.1})
    assert status == 1
    assert f"--max-mb 0.001 alone stands in the way; {least:.4g} MB is possible" in text
    assert "--min-f1" not in text
    status, text = pages.recommend(PROFILE, RESULTS, {"max_mb": 0.001, "max_ms": 0.001})
    assert status == 1
    assert "relax more than one limit" in text


def test_impossible_limits_and_a_profile_without_quality_are_errors():
    for option, value in (("--max-mb", "nan"), ("--max-ms", "-1"), ("--min-f1", "85"), ("--max-mb", "x")):
        assert run(ROOT, *SCRIPT, option, value).returncode == 2
    done = run(ROOT, *SCRIPT, "--profile", "bert-base-shape")
    assert done.returncode == 1
    assert "nothing to recommend" in done.stderr
