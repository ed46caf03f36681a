"""The report's layer: tables from columns, choices of rows, captions from templates, and what missing values do."""

import math
import random
import re
from dataclasses import dataclass, fields, replace
from statistics import mean
from types import SimpleNamespace

import pytest
from compress.config.profile import load_profile
from compress.data.partition import dataset_dict, split_snippets
from compress.methods.transfer import PARTS, transfer_set
from compress.paths import ROOT
from compress.report import comparisons, families, gallery, load_facts, pages, plots, recommendation, tables, views
from compress.report.tables import PAGE, Column, column_widths, markdown_table
from compress.results.reading import Results, read_results
from compress.results.rows import SeedRow, ServingRow, VariantRow
from conftest import read_csv

pytestmark = pytest.mark.committed
PROFILE = load_profile("minilm")
RESULTS = read_results(PROFILE)
ROWS = RESULTS.variants
TEXT = {"variant", "chapter", "family", "scope", "method", "parent", "backend", "precision", "device", "status"}


def row_of(variant: str, **values) -> VariantRow:
    texts = dict.fromkeys(TEXT, "") | {"device": "cpu", "status": "ok", "method": "onnx", "chapter": "HW4"}
    return VariantRow(**texts | {"variant": variant, "trained": True, "seed": 0} | values)


def results_of(rows: list[VariantRow], methods: dict | None = None, **tables_) -> Results:
    """Results with these rows; the first one is the baseline."""
    empty = {"options": {}, "details": {}, "measured": {}, "seconds": 1.0}
    methods = {row.variant: empty for row in rows} | (methods or {})
    lists = dict.fromkeys(("seeds", "serving", "services", "reliability", "flips", "against_large"), ())
    facts = {"champions": {}, "environment": {"baseline": rows[0].variant}, "data": {}}
    return Results(rows=rows, methods=methods, **facts | {name: list(of) for name, of in (lists | tables_).items()})


@dataclass
class Line:
    name: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    nested: dict | None = None


def cells(text: str) -> list[list[str]]:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return [lines[0], *lines[2:]]


def test_missing_values_are_empty_cells_and_empty_columns_are_left_out():
    columns = [Column("Name", "name"), Column("Value", "value", ".1f"), Column("Low", "low", ".1f")]
    text = markdown_table(columns, [Line("a", 1.25), Line("b")])
    assert cells(text) == [["Name", "Value"], ["a", "1.2"], ["b", ""]]
    assert markdown_table(columns, []) == ""


def test_numbers_are_rounded_without_negative_zero():
    assert tables.format_number(-0.04, ".1f") == "0.0"
    assert tables.format_number(-0.04, "+.1f") == "+0.0"
    assert tables.format_number(1.234e-5, ".2g") == "1.2e-05"
    assert tables.format_number(None, ".1f") == ""


def test_an_interval_is_shown_if_both_ends_were_measured():
    columns = [Column("Name", "name"), Column("Value", "value", ".1f", ("low", "high"))]
    lines = [Line("a", 1, 0.5, 2), Line("b", 1, 0.5), Line("c", None, 0.5, 2)]
    assert [line[1] for line in cells(markdown_table(columns, lines))[1:]] == ["1.0 [0.5, 2.0]", "1.0", ""]


def test_fields_reach_into_dictionaries_and_a_misspelled_one_is_an_error():
    line = Line("a", nested={"bits": 4})
    assert tables.column_value(line, "nested.bits") == 4
    assert tables.column_value(line, "nested.missing.deeper") is None
    with pytest.raises(AttributeError):
        tables.column_value(line, "valeu")


def test_all_rows_of_a_table_have_the_width_of_its_head():
    for name, rows in every_table().items():
        lines = tables.table(rows, name).splitlines()
        assert lines, name
        assert {line.count(" | ") for line in lines} == {lines[0].count(" | ")}, name


def every_table() -> dict[str, list]:
    """Rows of the committed results for every table that they can fill."""
    servers = load_facts.server_facts(RESULTS.serving, 130)
    return {
        "headline": views.headline(RESULTS),
        "quality": ROWS,
        "costs": ROWS,
        "seeds": RESULTS.seeds,
        "trainings": views.trainings(ROWS),
        "sensitivity": views.sensitivities(RESULTS),
        "engines": [row for row in ROWS if "integer_products" in row.details],
        "cold": ROWS,
        "optimum": comparisons.optimum_pairs(RESULTS),
        "changes": comparisons.one_thing_at_a_time(RESULTS, ROWS),
        "champions": views.champions(RESULTS),
        "goals": views.goals(RESULTS),
        "budgets": views.budget_choices(RESULTS, "size_mb", "MB"),
        "prices": views.prices(RESULTS),
        "flips": RESULTS.flips,
        "gpu": views.gpu_rows(replace(RESULTS, gpu=RESULTS)),
        "splits": views.splits(RESULTS),
        "services": RESULTS.services,
        "servers": list(servers.values()),
        "rates": load_facts.judged_rates(RESULTS.serving, servers, 130),
        "clients": load_facts.client_loops(RESULTS.serving),
        "settings": load_facts.peer_settings(RESULTS.serving),
    }


def test_a_champion_is_a_name_beside_its_variant_and_no_row():
    table = cells(tables.table(ROWS, "quality"))
    names = [line[0] for line in table[1:]]
    assert len(names) == len(set(names)) == len(ROWS)
    for champion, facts in RESULTS.champions.items():
        assert any(re.fullmatch(rf"{facts['chosen']} \(.*\b{champion}\b.*\)", name) for name in names)
    assert not set(RESULTS.champions) & set(names)


def test_columns_appear_once_they_are_measured():
    empty = {"text_latency_ms_p50": None, "non_inferior": None, "latency_speedup_low": None}
    rows = [replace(row, **empty) for row in ROWS[:2]]
    heads = cells(tables.table(rows, "costs"))[0], cells(tables.table(rows, "quality"))[0]
    assert "ms from text" not in heads[0]
    assert "Keeps the quality" not in heads[1]
    values = {
        "text_latency_ms_p50": 3.0,
        "non_inferior": False,
        "latency_speedup_low": 0.9,
        "latency_speedup_high": 1.1,
    }
    rows[1] = replace(ROWS[1], **values)
    costs = [dict(zip(*pair, strict=True)) for pair in zip_heads(tables.table(rows, "costs"))]
    assert [line["ms from text"] for line in costs] == ["", "3.00"]
    assert re.fullmatch(r"[\d.]+ \[0.90, 1.10\]", cells(tables.table(rows, "costs"))[2][5])
    quality = [dict(zip(*pair, strict=True)) for pair in zip_heads(tables.table(rows, "quality"))]
    assert [line["Keeps the quality"] for line in quality] == ["", "no"]


def zip_heads(text: str) -> list[tuple[list[str], list[str]]]:
    head, *lines = cells(text)
    return [(head, line) for line in lines]


def test_a_quoted_sentence_is_text_in_markdown():
    assert tables.literal_markdown("costs $40 | *so* [what]") == r"costs \$40 \| \*so\* \[what\]"


def test_every_pair_of_one_thing_at_a_time_is_in_the_default_profile():
    names = {variant.name for variant in PROFILE.variants}
    for line in read_csv(ROOT / "report" / "ablations.csv"):
        assert {line["with"], line["without"]} <= names, line


def test_two_variants_of_one_method_differ_in_one_thing():
    """Epochs may differ where the numbers of steps don't."""
    options = {variant.name: variant.model_dump() for variant in PROFILE.variants}
    splits = dataset_dict(split_snippets(PROFILE.data, 0)[0])
    sentences = {name: len(texts) for name in PARTS for texts, _ in transfer_set(splits, 0, [name])}

    def facts(name: str) -> dict:
        own = options[name] | {key: None for key in ("name", "timed", "scope", "chapter", "family", "counterpart")}
        if training := dict(own.pop("training", None) or {}):
            batches = math.ceil(sum(sentences[part] for part in training["transfer"]) / training["batch_size"])
            training["steps"] = math.ceil(training.pop("epochs") * batches)
        return own | {f"training.{key}": value for key, value in training.items()}

    compared = 0
    for line in read_csv(ROOT / "report" / "ablations.csv"):
        new, old = options[line["with"]], options[line["without"]]
        if new["method"] != old["method"] or line["without"] == new["parent"]:
            continue
        new, old = facts(line["with"]), facts(line["without"])
        different = {key for key in new | old if new.get(key) != old.get(key)}
        if any(key.startswith("training.") for key in different) and new.keys() != old.keys():
            different = {"training"}  # only one of them is trained
        assert len(different) == 1, (line, different)
        compared += 1
    assert compared > 20


def test_a_change_is_measured_on_every_seed_that_both_variants_have():
    f1 = {"qat-int8": (0.79, 0.80, 0.5), "int8-dynamic": (0.80, 0.82)}
    rows = [row_of(name, seed=seed, f1_test=value) for name, of in f1.items() for seed, value in enumerate(of)]
    results = results_of(rows)
    (change,) = comparisons.one_thing_at_a_time(results, results.variants)
    assert not comparisons.one_thing_at_a_time(results, [results.by_name["int8-dynamic"]])
    assert (change["new"].variant, change["old"].variant, change["seeds"]) == ("qat-int8", "int8-dynamic", 2)
    assert (change["gained"], change["least"], change["most"]) == pytest.approx((-1.5, -2, -1))
    assert change["smaller"] is None


def test_a_change_of_the_baseline_has_the_speedup_of_the_other_tables():
    changes = comparisons.one_thing_at_a_time(RESULTS, ROWS)
    made = [of for of in changes if of["old"].variant == "finetuned" and of["new"].latency_speedup]
    assert made
    assert comparisons.baseline_row(RESULTS).latency_speedup != 1
    for change in made:
        expected = change["new"].latency_speedup, change["new"].size_ratio
        assert (change["faster"], change["smaller"]) == pytest.approx(expected, rel=1e-4)


def test_a_control_of_fewer_seeds_is_compared_on_its_own_seeds():
    losses = {("student", 0): (1.0, 2.0), ("student", 1): (3.0, 8.0), ("control", 1): (0.5, 0.5)}
    rows = [
        row_of(name, seed=seed, f1_drop_points=home, ood_drop_points=away)
        for (name, seed), (home, away) in losses.items()
    ]
    control, student = rows[2], rows[0]
    assert comparisons.losses_on_seeds_of(control, student, results_of(rows)) == (3.0, 8.0)
    assert comparisons.losses_on_seeds_of(student, student, results_of(rows)) == (2.0, 5.0)
    at_home = [replace(row, ood_drop_points=None) for row in rows]
    assert comparisons.losses_on_seeds_of(control, student, results_of(at_home)) == (3.0, None)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("int8-dynamic", {"int8"}),
        ("qat-int4", {"int4"}),
        ("mixed-precision", {"int8", "int4"}),
        ("ov-int8-weights", {"int8"}),
        ("ov-codebook-weights", {"clustering"}),
        ("optimum-ort-int8", {"int8"}),
        ("bf16", {"16-bit floats"}),
        ("finetuned-ort-fp32", set()),
        ("prune-fisher-70", {"pruning"}),
        ("distill-3x384-v12000-ort-int8", {"student", "int8"}),
        ("tiny-deep-compression", {"student", "pruning", "clustering"}),
    ],
)
def test_ingredients_are_those_of_the_variant_and_its_ancestors(variant, expected):
    assert families.ingredients(variant, RESULTS) == expected


def test_a_variant_without_an_ingredient_is_as_large_as_the_baseline():
    alone = [row for row in ROWS if row.status == "ok" and not families.ingredients(row.variant, RESULTS)]
    assert "finetuned" in [row.variant for row in alone]
    assert all(0.99 < row.size_ratio < 1.01 for row in alone)


def test_validation_chooses_within_a_budget_and_never_the_test_set():
    def method(f1):
        return {"options": {"precision": "int8"}, "details": {}, "measured": {"validation_f1": f1}}

    f1 = {"best-on-test": 0.7, "best-on-validation": 0.8, "equal-but-larger": 0.8, "too-large": 0.9, "unmeasured": 0.9}
    sizes = dict(zip(f1, (9.0, 8.0, 8.5, 10.1, None), strict=True))
    rows = [row_of("base", method="finetune", size_mb=90.0)]
    rows += [row_of(name, f1_test=0.8, f1_drop_points=1.0, size_mb=size) for name, size in sizes.items()]
    rows[1] = replace(rows[1], f1_test=0.99)
    results = results_of(rows, {name: method(value) for name, value in f1.items()})
    by_limit = {budget.limit: budget for budget in comparisons.budgets(results, "size_mb")}
    assert by_limit[10].rows["int8"].variant == "best-on-validation"
    assert by_limit[10].winner == "int8"
    assert (by_limit[5].rows, by_limit[5].winner) == ({"int8": None}, None)


@pytest.mark.parametrize("column", ["size_mb", "latency_ms"])
def test_each_winner_of_equal_budgets_is_listed_once_with_all_its_budgets(column):
    found = comparisons.winners(RESULTS, column)
    budgets = [budget for budget in comparisons.budgets(RESULTS, column) if budget.winner]
    limits = {(row.variant, family, limit) for family, row, own in found for limit in own}
    assert limits == {(of.rows[of.winner].variant, of.winner, of.limit) for of in budgets}
    assert len({row.variant for _, row, _ in found}) == len(found)


def test_every_model_of_the_front_page_has_a_name_in_words_and_one_line():
    names = {line["variant"]: line["name"] for line in comparisons.lines_of("names.csv")}
    lines = views.front_models(replace(RESULTS, large=None))
    assert set(names) <= {variant.name for variant in PROFILE.variants}
    assert all(line["name"].startswith(names[line["row"].variant]) for line in lines)
    assert len({line["row"].variant for line in lines}) == len(lines)


def test_pruning_with_and_without_training_is_compared_at_the_highest_level_of_both():
    levels = {"a": (0.5, None), "b": (0.7, None), "c": (0.5, {"epochs": 1.0})}
    levels |= {"d": (0.7, {"epochs": 1.0}), "e": (0.7, {"epochs": 2.0}), "f": (0.9, {"epochs": 1.0})}
    rows = [row_of(name, method="prune", f1_drop_points=6.0 - place) for place, name in enumerate(levels)]
    methods = {
        name: {"options": {"pattern": "unstructured", "sparsity": level, "training": training}, "measured": {}}
        for name, (level, training) in levels.items()
    }
    assert [row.variant for row in comparisons.most_pruned(results_of(rows, methods))] == ["e", "b"]


def test_a_goal_is_missed_beyond_its_bound_and_open_without_a_measurement():
    tables = {RESULTS.environment["profile"]: RESULTS, RESULTS.large.environment["profile"]: RESULTS.large}
    lines = views.goals(RESULTS)
    assert {line["profile"] for line in lines} == set(tables)
    for line in lines:
        value = getattr(line["row"], line["column"])
        distance = (value - float(line["value"])) * (1 if line["bound"] == "at least" else -1)
        assert line["outcome"] == ("reached" if distance >= 0 else "missed")
        assert float(line["measured"]) == pytest.approx(value, abs=0.05)
    rows = [replace(row, size_ratio=None) for row in RESULTS.rows]
    lines = [line for line in views.goals(replace(RESULTS, rows=rows, large=None)) if line["column"] == "size_ratio"]
    assert {line["outcome"] for line in lines} == {"not measured"}


@pytest.mark.parametrize("column", ["size_mb", "latency_ms"])
def test_a_choice_is_the_best_of_its_family_that_fits(column):
    for budget in comparisons.budgets(RESULTS, column):
        for row in comparisons.choosable(RESULTS):
            cost = getattr(row, column)
            if cost is not None and cost <= budget.limit:
                chosen = budget.rows[families.family_of(row.variant, RESULTS)]
                assert getattr(chosen, column) <= budget.limit
                assert chosen.validation_f1 >= row.validation_f1


def test_no_row_is_better_and_no_larger_than_one_of_the_frontier():
    frontier = comparisons.pareto(ROWS, "size_mb")
    assert frontier
    for row in comparisons.trained(ROWS):
        larger = [best for best in frontier if row.size_mb <= best.size_mb]
        assert not [best for best in larger if row.f1_drop_points < best.f1_drop_points]


def test_a_variant_of_an_easy_seed_alone_does_not_beat_one_that_loses_fewer_points():
    f1 = {"base": (0.90, 0.80), "both-seeds": (0.89, 0.79), "easy-seed": (0.88,)}
    drops = {"base": 0.0, "both-seeds": 1.0, "easy-seed": 2.0}
    sizes = dict(zip(f1, (90.0, 10.0, 12.0), strict=True))
    rows = [
        row_of(name, seed=seed, f1_test=value, f1_drop_points=drops[name], size_mb=sizes[name])
        for name, of in f1.items()
        for seed, value in enumerate(of)
    ]
    pooled = [SeedRow(variant=name, seeds=len(of), f1_mean=mean(of), drop_mean=drops[name]) for name, of in f1.items()]
    results = results_of(rows, seeds=pooled)
    base, both, easy = results.variants
    assert easy.f1_test > both.f1_test
    assert comparisons.pareto(results.variants, "size_mb") == [both, base]
    comparable = [row.comparable_f1 for row in results.variants]
    assert comparable == pytest.approx([0.85, 0.84, 0.83])
    assert [recommendation.fits(row, {"min_f1": 0.835}) for row in results.variants] == [True, True, False]


def test_pages_show_the_seeds_beside_f1_where_a_variant_has_fewer():
    fewer = {row.variant for row in ROWS if row.seeds < RESULTS.by_name["finetuned"].seeds}
    assert fewer
    for name in ("quality", "domains"):
        lines = ROWS if name == "quality" else comparisons.domain_losses(ROWS)
        table = [dict(zip(*pair, strict=True)) for pair in zip_heads(tables.table(lines, name))]
        assert {line["Variant"].split(" ")[0] for line in table if line["Seeds"] == "1"} == fewer


def test_cost_is_threads_over_throughput_and_the_cheapest_comes_first():
    assert comparisons.core_seconds(SimpleNamespace(threads=2, throughput_per_s=500.0)) == pytest.approx(4000)
    chosen = comparisons.cheapest(RESULTS)
    seconds = [comparisons.core_seconds(row) for _, row in chosen]
    assert seconds == sorted(seconds)
    useful = {row.variant for row in comparisons.useful(RESULTS)}
    assert {row.variant for _, row in chosen} <= useful


def test_speeds_of_a_pair_differ_if_their_intervals_are_disjoint():
    def pair(low, high, other_low, other_high):
        rows = row_of("a", latency_speedup_low=low, latency_speedup_high=high), row_of("b")
        other = replace(rows[1], latency_speedup_low=other_low, latency_speedup_high=other_high)
        return comparisons.OptimumPair(rows[0], other)

    assert pair(2.0, 2.2, 1.0, 1.9).differs_in_speed
    assert not pair(2.0, 2.2, 2.1, 2.5).differs_in_speed
    assert not pair(None, None, 1.0, 1.9).differs_in_speed


def server(*runs, variant="a") -> list[ServingRow]:
    columns = {"layout": "open-loop", "shed_fraction": 0.0, "error_fraction": 0.0}
    return [ServingRow(variant=variant, **columns, offered_rps=rate, latency_ms_p99=p99) for rate, p99 in runs]


def test_a_sustained_rate_lies_between_the_one_that_passed_and_the_one_that_failed():
    quick, slow = server((800, 20), (1000, 90), (1250, 200)), server((80, 20), (100, 130), (125, 131), (200, None))
    full = ServingRow(variant="a", layout="saturation", achieved_rps=1300.0)
    facts = [load_facts.server_facts([*of, full], 130)["a"] for of in (quick, slow, server((10, 900)))]
    assert [(of.sustained, of.failed) for of in facts] == [(1000, [1250]), (100, [125]), (None, [10])]


def test_every_failing_rate_is_named_and_one_below_the_sustained_rate_is_an_outlier():
    runs = [
        *server((300, 20), (100, 20), (400, 150), (200, 415), (500, 900)),
        ServingRow(variant="a", layout="saturation"),
    ]
    facts = load_facts.server_facts(runs, 130)["a"]
    assert (facts.sustained, facts.failed) == (300, [400, 500])
    assert [row.offered_rps for row in facts.outliers] == [200]
    judged = load_facts.judged_rates(runs, ["a", "none"], 130)
    assert [(row.offered_rps, passed) for row, passed in judged] == [
        (100, True),
        (200, False),
        (300, True),
        (400, False),
        (500, False),
    ]


def test_servers_are_compared_at_the_base_servers_calm_rate_if_it_was_offered_to_others():
    base = [replace(row, share=share) for row, share in zip(server((70, 9), (90, 30)), (0.7, 0.9), strict=True)]
    other = [
        replace(row, share=share)
        for row, share in zip(server((70.01, 3), (700, 8), variant="b"), (0.07, 0.7), strict=True)
    ]
    peer = [replace(row, share=0.07) for row in server((70, 5), variant="peer-c")]
    found = load_facts.equal_rate([*base, *other, *peer], "a")
    assert [(row.variant, row.latency_ms_p99) for row in found] == [("a", 9), ("b", 3)]
    assert load_facts.equal_rate(base, "a") == []
    assert load_facts.offered_shares([*base, *other]) == [0.7]


def test_peers_and_our_server_in_their_turns_are_apart_from_our_other_servers():
    own = load_facts.server_facts(RESULTS.serving, 130)
    among_peers = load_facts.server_facts(RESULTS.serving, 130, peers=True)
    assert not set(own) & set(among_peers)
    assert load_facts.own_among_peers(among_peers)
    assert not any(fact.is_peer for fact in own.values())
    assert all(fact.is_peer for fact in load_facts.single_model(among_peers))


CONSTANTS = {f"{value:g}" for value in (*comparisons.BUDGETS_MB, comparisons.TOLERANCE, comparisons.SAME_F1)} | {"0.0"}


def captions(results: Results) -> dict[str, str]:
    """Every caption and the findings, as the pages of these results show them."""
    engine = pages.page_templates(PROFILE, results)
    names = engine.get_template("captions.md.j2").blocks
    several = {"shapes": list(results.champions), "sensitivity": gallery.with_sensitivity(results)}
    found = {f"{name} {of}": pages.caption(engine, name, of) for name in names for of in several.get(name, [""])}
    return found | {"findings": engine.get_template("findings.md.j2").render()}


def shaken(results: Results, seed: int) -> Results:
    """The results with every measured number multiplied by a factor of its own, from 1.5 to 3 times 2^seed."""
    chance = random.Random(seed)

    def factor():
        return chance.uniform(1.5, 3) * 2**seed

    def row(of):
        values = {f.name: getattr(of, f.name) for f in fields(of) if f.name != "share"}
        numbers = {name: value for name, value in values.items() if isinstance(value, float)}
        return replace(of, **{name: value * factor() for name, value in numbers.items()})

    def number(value, key=""):
        if isinstance(value, dict):
            return {name: number(of, name) for name, of in value.items()}
        if isinstance(value, list):
            return [number(of, key) for of in value]
        return value * factor() if isinstance(value, float) and key != "sparsity" else value

    lists = {name: [row(of) for of in getattr(results, name)] for name in ("rows", "seeds", "serving", "against_large")}
    return replace(results, methods=number(results.methods), **lists)


def test_every_number_of_a_caption_or_finding_comes_from_the_results():
    found = [captions(RESULTS), *(captions(shaken(RESULTS, seed)) for seed in range(8))]
    for name, text in found[0].items():
        numbers = [set(re.findall(r"\d+\.\d+", of[name])) for of in found]
        assert set.intersection(*numbers) <= CONSTANTS, text


def test_the_templates_of_captions_and_findings_hold_no_measured_number():
    for name in ("captions", "findings"):
        source = (ROOT / "report" / f"{name}.md.j2").read_text("utf-8")
        text = re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}", "", source, flags=re.S)
        assert not re.findall(r"\d+\.\d+", text)


def emptied(results: Results, *kept: str) -> Results:
    """The results without the numbers of any row except these columns, and without the optional tables."""

    def row(of):
        numbers = [f.name for f in fields(of) if isinstance(getattr(of, f.name), float) and f.name not in kept]
        return replace(of, **dict.fromkeys(numbers))

    methods = {name: {**method, "details": {}, "measured": {}} for name, method in results.methods.items()}
    lists = {"seeds": [], "serving": [], "services": [], "reliability": [], "flips": []}
    rows = [row(of) for of in results.rows if of.seed == 0]
    return replace(results, rows=rows, champions={}, methods=methods, gpu=None, **lists)


QUALITY = ("f1_test", "f1_drop_points", "f1_ci_low", "f1_ci_high", "size_mb", "size_ratio")
SIZES = ("size_mb", "size_ratio")


@pytest.mark.parametrize("kept", [QUALITY, SIZES, ()], ids=["quality and sizes", "sizes", "nothing"])
def test_missing_numbers_leave_gaps_and_never_break_a_page(kept):
    text = pages.report_pages(PROFILE, emptied(RESULTS, *kept))
    assert {"report", "decide", "hw1"} <= set(text)
    for name, page in text.items():
        assert not re.search(r"\bNone\b|\bnan\b|Undefined", page), name
    assert not re.search(r"\bNone\b|\bnan\b|Undefined", pages.front_page(PROFILE, emptied(RESULTS, *kept)))


@pytest.mark.parametrize("status", ["missing", "failed"])
def test_variants_that_only_later_seeds_have_break_no_page_and_no_figure(status):
    built = {PROFILE.baseline, "finetuned-ort-int8"}

    def without(row):
        known = TEXT - {"backend", "precision"}
        lost = {name: getattr(row, name) for name in (*known, "trained", "seed")} | {"status": status, "reason": "gone"}
        return row if row.seed or row.variant in built else VariantRow(**dict.fromkeys(TEXT, "") | lost)

    methods = {name: facts for name, facts in RESULTS.methods.items() if name in built}
    rows = [without(row) for row in RESULTS.rows]
    results = replace(RESULTS, rows=rows, methods=methods, champions={}, serving=[], services=[])
    assert {row.variant for row in comparisons.trained(results.variants)} == built
    pages.front_page(PROFILE, results)
    assert "report" in pages.report_pages(PROFILE, results)
    drawn = gallery.figures(PROFILE, results)
    assert "f1_vs_size" in drawn
    for draw in drawn.values():
        draw()


def test_the_protocol_names_the_earlier_one_only_where_times_have_no_interval():
    earlier = replace(RESULTS, rows=[replace(row, latency_speedup_low=None) for row in RESULTS.rows])
    for results, is_noted in ((RESULTS, False), (earlier, True)):
        text = pages.page_templates(PROFILE, results).get_template("report.md.j2").render()
        assert ("taken by an earlier protocol" in text) == is_noted


def test_a_variant_that_keeps_the_quality_is_counted_once_it_was_tested():
    judged = [replace(row, non_inferior=row.drop_mean < 1, drop_upper_one_sided=row.drop_high) for row in RESULTS.seeds]
    text = pages.report_pages(PROFILE, replace(RESULTS, seeds=judged))
    kept = sum(row.drop_mean < 1 for row in judged if row.variant not in ("bert-orig", "finetuned"))
    assert re.search(rf"{kept + 1} of \d+ trained variants keep the quality", text["report"])
    assert "| Keeps the quality |" in text["hw1"]


def large_results() -> Results:
    """Made-up results of the large network: the course's rows and two others, losing twice what the small one loses."""
    small = RESULTS.by_name
    names = [
        "finetuned",
        "bert-orig",
        "bert-orig-int8",
        "cluster-16-tuned",
        "finetuned-ort-fp32",
        "qat-int4",
        "cluster-16",
    ]
    names += ["int8-dynamic", "prune-fisher-70"]
    times_two = {name: 2 * (small[name].f1_drop_points or 0) for name in names}
    rows = [
        row_of(name, f1_test=0.9, f1_drop_points=times_two[name], size_mb=438.0, size_ratio=1.0, latency_ms_p50=60.0)
        for name in names
    ]
    rows.append(row_of("distill-6x768", f1_test=0.91, f1_drop_points=1.5, size_mb=270.0, size_ratio=1.6))
    results = results_of(rows)
    results.rows[0] = replace(results.rows[0], text_latency_ms_p50=62.0)
    results.environment.update(description="a large network", machine=[RESULTS.machine])
    results.data["fingerprint"] = RESULTS.data["fingerprint"]
    return results


def test_the_section_on_base_size_pairs_the_courses_rows_and_the_methods_of_both_networks():
    lost = [SeedRow(variant=row.variant, seeds=1, drop_mean=4.25, drop_low=3.5, drop_high=5.0) for row in RESULTS.seeds]
    results = replace(RESULTS, large=large_results(), against_large=lost)
    text = pages.page_templates(PROFILE, results).get_template("basesize.md.j2").render()
    course = cells(text[text.index("| Course") :].split("\n\n")[0])
    ours = {(line[0], line[1]): line[course[0].index("Ours")] for line in course[1:]}
    assert ours == {
        ("Bert_orig (cpu)", "no"): "bert-orig",
        ("Bert_orig (cuda)", "yes"): "finetuned",
        ("BERT_q_dynamic (cpu)", "no"): "bert-orig-int8",
        ("BERT_cluster (cuda)", "yes"): "cluster-16-tuned",
        ("BERT_distil (cuda)", "yes"): "distill-6x768",
        ("BERT_onnx (cpu)", "yes"): "finetuned-ort-fp32",
    }
    pairs = comparisons.at_both_sizes(results)
    assert {pair.small.variant for pair in pairs} >= {"qat-int4", "cluster-16", "int8-dynamic", "prune-fisher-70"}
    assert {pair.large.variant for pair in pairs if pair.small.variant == "distill-3x384"} == {"distill-6x768"}
    doubled = [pair for pair in pairs if pair.small.variant == pair.large.variant]
    assert comparisons.agreement(doubled, "f1_drop_points") == pytest.approx(1)
    assert comparisons.agreement(doubled, "latency_speedup") is None  # not measured on the large one
    assert all(pair.method in text for pair in pairs)
    small = {line["name"]: line for line in views.against_large(results)}
    assert {name for key in small for name in key.split(" = ")} == {"fine-tuned", *RESULTS.champions}
    assert small["fine-tuned"]["smaller"] == pytest.approx(438.0 / comparisons.baseline_row(RESULTS).size_mb)
    assert text.count("| 4.2 [3.5, 5.0] |") == len(small)
    first, *others = views.front_models(results)
    assert (first["row"].size_mb, first["row"].f1_drop_points, first["row"].non_inferior) == (438.0, -4.25, True)
    assert (first["row"].f1_drop_ci_low, first["row"].f1_drop_ci_high) == (-5.0, -3.5)
    assert others == views.front_models(replace(RESULTS, large=None))
    assert " has 4.2 [3.5, 5.0] F1 points more than" in pages.front_page(PROFILE, results)
    assert gallery.figures(PROFILE, results).keys() - gallery.figures(PROFILE, replace(RESULTS, large=None)).keys() == {
        "both_sizes"
    }
    assert plots.both_sizes(results).axes[0].get_yticklabels()[-1].get_text() == pairs[0].method


def test_times_of_different_kinds_of_machines_are_not_compared():
    lost = [SeedRow(variant=row.variant, seeds=1, drop_mean=4.25, drop_low=3.5, drop_high=5.0) for row in RESULTS.seeds]
    large, there = large_results(), RESULTS.machine | {"cpu": "Another CPU"}
    for machine, compared in ((RESULTS.machine, True), (there, False)):
        large.environment["machine"] = [machine]
        results = replace(RESULTS, large=large, against_large=lost)
        templates = pages.page_templates(PROFILE, results)
        assert {bool(line["faster"]) for line in views.against_large(results)} == {compared}
        assert bool(views.front_models(results)[0]["row"].text_latency_ms) is compared
        assert ("times smaller and" in pages.front_page(PROFILE, results)) is compared
        section = templates.get_template("basesize.md.j2").render()
        assert ("another kind of machine (Another CPU)" in section) is not compared
    fact = load_facts.server_facts(RESULTS.serving, 130)[PROFILE.serving.ablated]
    for machine, compared in ((RESULTS.machine, True), (there, False)):
        results = replace(RESULTS, serving_origins=[{"servers": [fact.variant], "machine": machine}])
        templates = pages.page_templates(PROFILE, results)
        assert bool(load_facts.offline_rate(fact, results)) is compared
        section = templates.get_template("chapters/serving.md.j2").render(notebook=False)
        assert ("(of another machine than in the other chapters, an Another CPU)" in section) is not compared


def test_a_report_of_a_cpu_without_vnni_says_so():
    with_vnni = RESULTS.machine | {"architecture": "x86_64", "cpu_flags": ["avx2", "avx_vnni"]}
    for machine, said in ((with_vnni, False), (with_vnni | {"cpu_flags": ["avx2"]}, True)):
        results = replace(RESULTS, environment=RESULTS.environment | {"machine": [machine]})
        section = pages.page_templates(PROFILE, results).get_template("chapters/limitations.md.j2").render()
        assert ("This CPU has no VNNI" in section) is said


def test_controls_and_cascades_are_in_no_group_of_compressed_networks():
    groups = comparisons.domain_groups(RESULTS)
    names = {name: [row.variant for row in rows] for name, rows in groups.items()}
    counted = [variant for variants in names.values() for variant in variants]
    assert len(counted) == len(set(counted)) > 50
    controls = {f"taught-6x384-{control}" for control in ("own", "labels", "home")}
    assert not set(counted) & (controls | {"cascade-2x384-int8", "finetuned", "taught-6x384"})
    assert {"taught-6x384-ort-int8", "taught-tiny"} <= set(names["taught"])
    assert {"int8-dynamic", "cluster-16", "prune-fisher-50"} <= set(names["same"])
    assert {"distill-2x384", "structured-50", "trim-12000"} <= set(names["fewer"])
    for variant in names["taught"]:  # as the README says of them
        options = [RESULTS.methods[row.variant]["options"] for row in RESULTS.ancestry(variant)]
        assert any("unlabelled" in (own.get("training") or {}).get("transfer", ()) for own in options)


def test_results_of_the_large_network_on_other_sentences_are_not_compared():
    large = large_results()
    large.data["fingerprint"] = "other"
    text = pages.page_templates(PROFILE, replace(RESULTS, large=large)).get_template("basesize.md.j2").render()
    assert text.strip() == "The results of `base` are of other sentences, so nothing is compared with them."


def test_without_results_of_the_large_network_there_is_no_section_on_base_size():
    results = replace(RESULTS, large=None)
    assert not pages.page_templates(PROFILE, results).get_template("basesize.md.j2").render().strip()


@pytest.mark.parametrize(("status", "pairs"), [("ok", ["by-optimum"]), ("skipped", [])])
def test_a_pair_of_optimum_needs_both_models(status, pairs):
    about = {"options": {"counterpart": "direct"}, "details": {}, "measured": {}, "seconds": 1.0}
    rows = [row_of("finetuned"), row_of("direct"), row_of("by-optimum", status=status)]
    found = comparisons.optimum_pairs(results_of(rows, {"by-optimum": about}))
    assert [pair.row.variant for pair in found] == pairs


def test_wide_columns_of_a_table_give_way_before_a_word_is_wider_than_its_column():
    columns = [("Model", "`a-name-of-code`", "plain-name"), ("Remark", "many short words " * 20), ("F1", "0.9")]
    code, remark, number = column_widths(columns)
    assert code >= len("`a-name-of-code`")
    assert number >= 3
    assert code + remark + number == pytest.approx(PAGE, abs=2)
    assert column_widths([columns[0], columns[2]]) == [code, number]


def test_the_facts_of_the_text_are_those_of_rows_with_known_answers():
    def of(name, drop, away, parameters, flips=0.02, speed=None, method="onnx", low=None, high=None, seed=0):
        numbers = {"f1_drop_points": drop, "ood_drop_points": away, "parameters": parameters, "flip_rate": flips}
        numbers |= {"size_mb": 100.0 if name == "finetuned" else 25.0, "latency_speedup": speed, "seed": seed}
        parent = None if name == "finetuned" else "finetuned"
        return row_of(name, method=method, parent=parent, f1_drop_ci_low=low, f1_drop_ci_high=high, **numbers)

    rows = [
        of("finetuned", 0.0, 0.0, 100, flips=0.0, speed=1.0, method="finetune"),
        of("finetuned", 0.0, 0.0, 100, flips=0.0, method="finetune", seed=1),
        of("copy", 0.0, 0.0, 100, flips=0.0, speed=2.0, low=0.0, high=0.0),
        of("a", 1.0, 2.0, 100, speed=6.0, low=0.0, high=2.0),
        of("a", 3.0, 4.0, 100, seed=1),
        of("b", 0.05, 6.0, 100, speed=4.0, low=-1.0, high=3.0),
        of("small", 0.1, 9.0, 50, flips=0.05, speed=3.0, low=-2.0, high=4.0),
        of("taught", 0.5, 1.0, 50, speed=3.5),
        *(of(f"k{k}{end}", k, k, 100, method="cluster") for k, end in ((4, ""), (8, ""), (8, "-tuned"))),
    ]
    options = {row.variant: {} for row in rows} | {"taught": {"training": {"teacher": "large"}}}
    options |= {f"k{k}": {"rate": 0.0, "k": k, "training": None} for k in (4, 8)}
    options |= {"k8-tuned": {"rate": 0.0, "k": 8, "training": {"teacher": "baseline"}}}
    about = {"details": {}, "measured": {"validation_f1": 0.8}, "seconds": 1.0}
    results = results_of(rows, {name: about | {"options": of} for name, of in options.items()})
    by_name = results.by_name
    assert comparisons.drop_deviations(results) == [pytest.approx(math.sqrt(2))]
    assert comparisons.median_width(results.variants) == 4.0  # of 2, 4 and 6; the copy changes nothing
    assert comparisons.most_unequal_speeds(results.variants) == (by_name["a"], by_name["copy"])
    assert comparisons.silent_flips(results) == by_name["small"]  # within 0.1 points, and most of its labels change
    assert comparisons.fewest_values(results) == (8, by_name["k8-tuned"], by_name["k8"])
    facts = comparisons.domain_facts(results)
    assert facts["fewer"] == {"rows": 1, "home": 0.1, "away": 9.0}
    assert facts["taught"] == {"rows": 1, "home": 0.5, "away": 1.0}
    # The medians of a, b and the three clustered.
    assert facts["same"] == {"rows": 5, "home": 4.0, "away": 6.0}
    table = [{"f1": 0.9}, {"f1": 0.85, "bits": 4, "group": "x"}, {"f1": 0.89, "bits": 8, "group": "x"}]
    assert comparisons.group_losses(table) == {4: {"x": pytest.approx(5)}, 8: {"x": pytest.approx(1)}}
