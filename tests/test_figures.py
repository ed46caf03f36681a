"""Figures: the committed ones are those of the table, drawing is deterministic, and every point is drawn once."""

import math
from dataclasses import fields, replace
from itertools import combinations, product

import pytest
from compress.config.profile import load_profile
from compress.report import canvas, chapter_plots, comparisons, families, gallery, load_facts, load_plots, plots
from compress.results.reading import by_variant, read_results
from compress.results.rows import ServingRow, VariantRow
from matplotlib.backends.backend_agg import FigureCanvasAgg

pytestmark = pytest.mark.committed
PROFILE = load_profile("minilm")
RESULTS = read_results(PROFILE)


@pytest.mark.parametrize("name", ["minilm", "bert-base-shape"])
def test_the_committed_figures_are_those_of_the_table(name):
    profile = load_profile(name)
    expected = set(gallery.figures(profile, read_results(profile)))
    assert {path.stem for path in profile.figures.glob("*.png")} == expected, f"run make figures PROFILE={name}"
    assert {path.stem for path in profile.figures.glob("*.pdf")} == expected
    assert bool(expected) is not bool(profile.no_quality)


@pytest.mark.parametrize("name", ["f1_vs_latency", "sensitivity_mixed-precision", "reliability", "serving_peers"])
def test_a_figure_drawn_twice_has_the_same_bytes(name, tmp_path):
    for folder in ("a", "b"):
        draw = gallery.figures(PROFILE, read_results(PROFILE))[name]
        gallery.draw_one(tmp_path / folder, name, draw)
    for kind in ("png", "pdf"):
        assert (tmp_path / "a" / f"{name}.{kind}").read_bytes() == (tmp_path / "b" / f"{name}.{kind}").read_bytes()


def test_every_variant_is_one_point_and_every_champion_a_ring_around_its_variant():
    axes = plots.trade_off(RESULTS, "size_mb").axes[0]
    drawn = sorted(tuple(container[0].get_xydata()[0]) for container in axes.containers)
    shown, left_out = comparisons.shown_and_left_out(RESULTS, "size_mb")
    assert drawn == sorted((row.size_mb, row.comparable_f1) for row in shown)
    assert left_out
    assert not set(row.variant for row in shown) & set(row.variant for row in left_out)
    (rings,) = [line.get_xydata() for line in axes.lines if line.get_markersize() == 11]
    chosen = {RESULTS.by_name[facts["chosen"]].size_mb for facts in RESULTS.champions.values()}
    assert {size for size, _ in rings} == chosen
    assert len(rings) == len(chosen)


def test_names_in_the_overview_are_inside_the_axes_and_touch_neither_each_other_nor_a_point():
    figure = plots.overview(RESULTS)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    axes = figure.axes[0]
    names = [text.get_window_extent(renderer) for text in axes.texts if len(text.get_text()) > 1]
    points = [line.get_window_extent(renderer) for line in axes.lines]
    assert len(names) == len(points) > 5
    for name in names:
        assert axes.bbox.count_contains(name.corners()) == 4
    for one, other in [*combinations(names, 2), *product(names, points)]:
        assert not one.overlaps(other)


def test_every_family_has_a_colour_and_marker_of_its_own():
    assert list(canvas.FAMILY_STYLES) == list(families.FAMILIES)
    assert len(set(canvas.FAMILY_STYLES.values())) == len(families.FAMILIES)


def test_speedups_have_error_bars_where_they_have_an_interval():
    row = RESULTS.by_name["finetuned-ort-int8"]
    low, high = 0.8 * row.latency_speedup, 1.25 * row.latency_speedup
    timed = replace(row, latency_speedup_low=low, latency_speedup_high=high)
    assert canvas.speedup_errors([timed]) == [
        [pytest.approx(0.2 * row.latency_speedup)],
        [pytest.approx(0.25 * row.latency_speedup)],
    ]
    (below,), (above,) = canvas.latency_errors([timed])
    assert (below, above) == (pytest.approx(0.2 * row.latency_ms), pytest.approx(0.25 * row.latency_ms))
    without = replace(row, latency_speedup_low=None)
    assert all(math.isnan(length) for lengths in canvas.latency_errors([without]) for length in lengths)


def test_the_reliability_diagram_states_the_error_of_its_own_curve():
    bins = by_variant(RESULTS.reliability)
    for row in comparisons.calibrated(RESULTS):
        sentences = sum(point.sentences for point in bins[row.variant])
        gaps = sum(point.sentences * abs(point.confidence - point.accuracy) for point in bins[row.variant])
        assert row.ece_test == pytest.approx(gaps / sentences, abs=1e-5)


def test_error_bars_of_f1_are_the_paired_interval_of_the_drop():
    row = replace(RESULTS.variants[1], f1_test=0.8, f1_drop_points=2.0, f1_drop_ci_low=1.0, f1_drop_ci_high=5.0)
    assert canvas.drop_errors([row]) == [[1.0], [3.0]]
    assert canvas.f1_errors([row]) == [[pytest.approx(0.03)], [pytest.approx(0.01)]]


def test_students_are_drawn_by_the_points_that_they_lose_to_their_own_seeds_baseline():
    axes = chapter_plots.distillation_bars(RESULTS).axes[0]
    drawn = dict(zip([text.get_text() for text in axes.get_yticklabels()], axes.lines[1].get_xdata(), strict=True))
    assert drawn == {row.variant: row.f1_drop_points for row in comparisons.of_method(RESULTS, "distill")}
    assert set(axes.lines[0].get_xdata()) == {0}


def test_intervals_of_speed_and_other_domains_are_drawn():
    def measured(row):
        lost = row.f1_drop_points and 1.5 * row.f1_drop_points
        ends = [factor * row.latency_speedup if row.latency_speedup else None for factor in (0.9, 1.1)]
        return replace(row, ood_drop_points=lost, latency_speedup_low=ends[0], latency_speedup_high=ends[1])

    seeds = [replace(row, ood_drop_mean=1.5 * row.drop_mean) for row in RESULTS.seeds]
    results = replace(RESULTS, rows=[measured(row) for row in RESULTS.rows], seeds=seeds)
    drawn = {name: draw() for name, draw in gallery.figures(PROFILE, results).items()}
    assert "domain_shift" in drawn
    labels = [text.get_text() for text in drawn["domain_shift"].axes[0].texts]
    assert sorted(", ".join(labels).split(", ")) == sorted(RESULTS.champions)
    bars = drawn["f1_vs_latency"].axes[0].containers
    assert bars
    assert all(bar.has_xerr for bar in bars)


def test_results_without_times_have_their_other_figures():
    columns = [column.name for column in fields(VariantRow) if "latency" in column.name or "speedup" in column.name]
    rows = [replace(row, **dict.fromkeys([*columns, "throughput_per_s"])) for row in RESULTS.rows]
    results = replace(RESULTS, rows=rows, large=None)
    found = gallery.figures(PROFILE, results)
    assert {"f1_vs_size", "flips"} <= set(found)
    assert not {"overview", "f1_vs_latency"} & set(found)
    for name in ("f1_vs_size", "flips"):
        found[name]()


def test_labels_above_the_points_do_not_overlap():
    texts = ["a" * length for length in (30, 5, 20, 20, 40, 10)]
    places = [0.1, 0.05, 0.5, 0.5, 0.4, 0.9]
    steps = plots.label_steps(texts, places)
    for i, j in combinations(range(len(texts)), 2):
        reach = plots.LETTER_WIDTH * (len(texts[i]) + len(texts[j])) / 2
        assert steps[i] != steps[j] or abs(places[i] - places[j]) >= reach
    assert steps[1] == steps[5] == 0


def test_a_label_is_beside_its_point_where_no_other_point_is_unless_it_would_leave_the_axes():
    width = plots.LABEL_START + plots.LABEL_LETTER * 10
    assert plots.label_side("a" * 10, 0.2, [0.2]) == 1
    assert plots.label_side("a" * 10, 0.8, [0.8, 0.9]) == -1
    assert plots.label_side("a" * 10, 0.2, [0.1, 0.2, 0.2 + 0.9 * width]) == -1
    assert plots.label_side("a" * 10, 0.2, [0.2, 0.2 + 1.1 * width]) == 1
    assert plots.label_side("a" * 10, 0.8, [0.8 - 0.9 * width, 0.8]) == 1
    assert plots.label_side("a" * 10, 1.01 - width, [0.99 - 2 * width, 1.01 - width]) == -1
    assert plots.label_side("a" * 10, 1.01 - width, [1.02 - 2 * width, 1.01 - width]) == -1  # blocked, but no room


def test_the_load_figure_has_the_limit_and_hollow_points_above_it_or_unanswered():
    limit = PROFILE.serving.load.p99_ms
    rows = load_facts.open_rows(load_plots.user_servers(RESULTS.serving, PROFILE.serving.ablated))
    axes = load_plots.load_curves(rows, limit).axes[0]
    assert [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"] == [limit]
    (text,) = axes.texts
    assert text.get_text() == f"limit\n{limit:g} ms"
    axes.figure.draw_without_rendering()
    box, right = text.get_window_extent(), axes.get_window_extent().x1
    assert right <= box.x0 < box.x1 < axes.figure.bbox.x1, "beside the axes, where no point is"
    hollow = {tuple(x) for line in axes.lines if line.get_markerfacecolor() == "white" for x in line.get_xydata()}
    failing = {(row.offered_rps, row.latency_ms_p99) for row in rows if not load_facts.passes(row, limit)}
    assert hollow == failing
    assert any(p99 > limit for _, p99 in failing)


def test_servers_of_the_ablation_and_of_the_peers_have_figures_of_their_own():
    names = [
        "a",
        "a-b",
        "a-b-int8",
        "a-b-no-batching",
        "a-b-beside-peers",
        "five-services",
        "peer-x",
        "peer-x-five-services",
    ]
    rows = [ServingRow(variant=name, layout="open-loop") for name in names]
    chosen = {
        choose: [row.variant for row in choose(rows, "a-b")]
        for choose in (load_plots.user_servers, load_plots.ablation_servers, load_plots.peer_servers)
    }
    assert chosen[load_plots.user_servers] == ["a", "a-b", "a-b-int8", "five-services"]
    assert chosen[load_plots.ablation_servers] == ["a-b", "a-b-no-batching"]
    assert chosen[load_plots.peer_servers] == ["a-b-beside-peers", "peer-x"]
    assert load_plots.ablation_servers(rows, None) == load_plots.ablation_servers(rows[:2], "a-b") == []
