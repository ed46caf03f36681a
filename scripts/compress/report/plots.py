"""Figures that compare all variants: F1 over a cost, other domains, flips, calibration, seeds."""

from math import log

from compress.report import canvas, comparisons, views
from compress.report.families import family_of
from compress.results.reading import Results, by_variant
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patheffects import withStroke

COSTS = {  # what F1 is drawn over
    "size_mb": "size on disk, MB",
    "latency_ms": "latency at batch 1, ms",
}
MOST_LOST = 6  # points lost or gained: the ends of the overview's colours
LETTER_WIDTH = 0.0095  # of a letter in the labels above the points, as a share of the axis
LABEL_HEIGHT = 0.045  # of a label or point of the overview, as a share of the axis
LABEL_START, LABEL_LETTER = 0.04, 0.0074  # a label's distance from its point and the width of its letters there


def trade_off(results: Results, column: str):
    """F1 over a cost (log scale), one point per variant; the Pareto frontier is joined and named, the rest is pale."""
    rows, _ = comparisons.shown_and_left_out(results, column)
    frontier, base = comparisons.pareto(rows, column), comparisons.baseline_row(results)
    figure, axes = canvas.new_axes(7.2, 4.8)
    canvas.baseline_line(axes, results)
    axes.plot(getattr(base, column), base.f1_test, "k*", ms=8, zorder=6)
    costs, best = [getattr(row, column) for row in frontier], [row.comparable_f1 for row in frontier]
    axes.step(costs, best, where="post", color="0.6", lw=1, zorder=1)
    cost_points(axes, [row for row in rows if row not in frontier], column, results, alpha=0.35)
    cost_points(axes, frontier, column, results, alpha=1)
    champions = [row for row in rows if row.champions]
    if champions:
        places = [(getattr(row, column), row.comparable_f1) for row in champions]
        canvas.ring(axes, *zip(*places, strict=True), label="champion")
    values = [getattr(row, column) for row in [*rows, base]]
    low, high = min(values) / 1.3, max(values) * 1.3
    canvas.log_scale(axes, "x")
    axes.set_xlim(low, high)
    least, most = axes.get_ylim()
    axes.set_ylim(least, most + 0.22 * (most - least))  # room for the names
    named = [row for row in rows if row in frontier or row.champions]
    label_above(axes, named, [log(getattr(row, column) / low) / log(high / low) for row in named], column)
    canvas.label_axes(axes, f"{COSTS[column]}, log scale", canvas.F1_LABEL)
    canvas.family_legend(axes, rows, results)
    return figure


def overview(results: Results):
    """Size and time from text of a few named models; circles are points lost at home, diamonds those out of domain.

    A circle is hollow where the model is not shown to keep the quality.
    """
    lines = timed_models(results)
    sizes, times = [line["row"].size_mb for line in lines], [line["row"].text_latency_ms for line in lines]
    low, high = min(sizes) / 1.5, max(sizes) * 1.6
    bottom, top = min(times) / 2, max(times) * 2
    figure, axes = canvas.new_axes(7.2, 4.8)
    norm = Normalize(-MOST_LOST, MOST_LOST, clip=True)
    for line, x, y in zip(lines, sizes, times, strict=True):
        row = line["row"]
        home, away = (canvas.LOSSES(norm(value or 0)) for value in (row.f1_drop_points, row.ood_drop_points))
        kept = row.non_inferior is not False
        axes.plot(
            x, y, "o", ms=12, mfc=home if kept else "white", mec="black" if kept else home, mew=0.8 if kept else 3
        )
        text = f"{line['name']}: {lost(row)}"
        level = [
            size for size, time in zip(sizes, times, strict=True) if abs(log(time / y, top / bottom)) < LABEL_HEIGHT
        ]
        place, *others = (log(size / low, high / low) for size in (x, *level))
        side = label_side(text, place, others)
        beside = {"textcoords": "offset points", "va": "center"}
        if row.ood_drop_points is not None:
            edge = [withStroke(linewidth=1.5, foreground="black")]
            style = {"color": away, "path_effects": edge, "ha": "center", "fontsize": 11}
            axes.annotate("\u25c6", (x, y), (12 * side, 0), **beside | style)
        axes.annotate(text, (x, y), (19 * side, 0), ha="left" if side > 0 else "right", fontsize=7, **beside)
    canvas.log_scale(axes, "xy")
    axes.set_xlim(low, high)
    axes.set_ylim(bottom, top)
    canvas.label_axes(axes, COSTS["size_mb"], "one sentence from text, ms")
    label = "points lost at home (circle) | out of domain (diamond); negative: gained"
    label += "\nhollow: not shown to keep the quality"
    canvas.colour_bar(ScalarMappable(norm, canvas.LOSSES), [axes], location="bottom", aspect=50, label=label)
    return figure


def timed_models(results: Results) -> list[dict]:
    """The models of the front page that have a time from text; the large one's may be of another machine."""
    return [line for line in views.front_models(results) if line["row"].text_latency_ms]


def label_side(text: str, place: float, level: list[float]) -> int:
    """1 for a label at the right of its point, -1 for the left.

    It points to the middle, unless another point is there and the other side has room. place: of the point along the
    axis, from 0 to 1; level: of all points of about its height, itself among them.
    """
    inner = 1 if place < 0.5 else -1
    width = LABEL_START + LABEL_LETTER * len(text)
    blocked = any(0 < inner * (other - place) < width for other in level)
    has_room = width < (place if inner > 0 else 1 - place)
    return -inner if blocked and has_room else inner


def lost(row) -> str:
    """Points lost at home and out of domain, for a label."""
    values = [value for value in (row.f1_drop_points, row.ood_drop_points) if value is not None]
    return " | ".join(f"{value:z.1f}" for value in values)


def cost_points(axes, rows, column: str, results: Results, alpha: float) -> None:
    points = [
        (
            row,
            getattr(row, column),
            row.comparable_f1,
            canvas.latency_errors([row]) if column == "latency_ms" else None,
            canvas.f1_errors([row]),
        )
        for row in rows
    ]
    canvas.family_points(axes, points, results, alpha=alpha, capsize=2)


def label_above(axes, rows, places: list[float], column: str) -> None:
    """The variants' names in steps above all points, with lines to their points: next to them they would overlap.

    places: of the points along the axis, from 0 to 1.
    """
    halves = [LETTER_WIDTH * len(row.variant) / 2 for row in rows]
    places = [min(max(place, half), 1 - half) for place, half in zip(places, halves, strict=True)]
    steps = label_steps([row.variant for row in rows], places)
    for row, place, step in zip(rows, places, steps, strict=True):
        _, above = canvas.f1_errors([row])
        axes.annotate(
            row.variant,
            (getattr(row, column), row.comparable_f1 + above[0]),
            (place, 0.84 + 0.045 * step),
            textcoords="axes fraction",
            arrowprops={"arrowstyle": "-", "color": "0.75", "lw": 0.6},
            ha="center",
            fontsize=7,
            fontweight="bold" if row.champions else None,
            bbox={"color": "white", "alpha": 0.8, "pad": 0.5},
            zorder=5 - step / 100,  # long lines pass behind the labels under them
        )


def label_steps(texts: list[str], places: list[float]) -> list[int]:
    """For labels centred at these places, shares of the axis, the first step at which each overlaps no other."""
    ends: list[float] = []  # the right end of the last label of each step
    steps = {}
    for i in sorted(range(len(texts)), key=lambda i: places[i]):
        half = LETTER_WIDTH * len(texts[i]) / 2
        steps[i] = next((step for step, end in enumerate(ends) if end < places[i] - half), len(ends))
        ends[steps[i] : steps[i] + 1] = [places[i] + half]
    return [steps[i] for i in range(len(texts))]


def domain_shift(results: Results):
    """Points lost out of domain over points lost at home; on the line both are equal."""
    rows = [row for row in comparisons.domain_losses(comparisons.compressed_rows(results)) if within_view(row)]
    figure, axes = canvas.new_axes(6.4, 5.2)
    home = [row.f1_drop_points for row in rows]
    ends = min([0, *home]) - 0.5, max([0, *home]) + 0.5
    axes.plot(ends, ends, color="0.5", lw=1, zorder=0)
    axes.axhline(0, color="0.8", lw=0.8, zorder=0)
    points = [
        (row, row.f1_drop_points, row.ood_drop_points, canvas.drop_errors([row]), canvas.domain_errors([row]))
        for row in rows
    ]
    canvas.family_points(axes, points, results, elinewidth=0.4)
    for row in (row for row in rows if row.champions):
        place = row.f1_drop_points, row.ood_drop_points
        canvas.ring(axes, *place)
        line = {"arrowstyle": "-", "color": "0.4", "lw": 0.6, "shrinkB": 6}
        beside = {"xytext": (0.5, place[1]), "textcoords": axes.get_yaxis_transform(), "va": "center", "fontsize": 7}
        axes.annotate(", ".join(row.champions), place, arrowprops=line, **beside)
    canvas.label_axes(axes, "F1 points lost at home", "macro F1 points lost out of domain, mean of three sets")
    canvas.family_legend(axes, rows, results)
    return figure


def within_view(row) -> bool:
    return abs(row.f1_drop_points) <= comparisons.SHOWN_LOSS


def flip_cloud(results: Results):
    """Share of predictions that differ from the baseline's over the F1 points lost."""
    rows = [row for row in comparisons.compressed_rows(results) if row.flip_rate is not None and within_view(row)]
    figure, axes = canvas.new_axes(6.4, 4.8)
    canvas.family_points(axes, [(row, row.f1_drop_points, 100 * row.flip_rate, None, None) for row in rows], results)
    if silent := comparisons.silent_flips(results):
        place = silent.f1_drop_points, 100 * silent.flip_rate
        canvas.ring(axes, *place)
        line = {"arrowstyle": "-", "color": "0.6", "lw": 0.6}
        axes.annotate(silent.variant, place, (-15, 70), textcoords="offset points", fontsize=7, arrowprops=line)
    axes.set_ylim(0, None)
    canvas.label_axes(axes, "F1 points lost", "predictions that differ from the baseline's, %")
    canvas.family_legend(axes, rows, results)
    return figure


def reliability_diagram(results: Results):
    """Accuracy over confidence, the diagonal where they are equal, and the share of sentences per bin."""
    bins = by_variant(results.reliability)
    rows = [row for row in comparisons.calibrated(results) if row.variant in bins]
    size = {"width": 2.5 * len(rows) + 0.5, "height": 3.6}
    figure, panels = canvas.new_panels(2, len(rows), **size, sharex=True, sharey="row", height_ratios=(3, 1))
    for (axes, below), row in zip(panels.T, rows, strict=True):
        confidence = [point.confidence for point in bins[row.variant]]
        accuracy = [point.accuracy for point in bins[row.variant]]
        sentences = [point.sentences for point in bins[row.variant]]
        axes.plot([0.5, 1], [0.5, 1], color="0.5", lw=1)
        axes.vlines(confidence, accuracy, confidence, color=canvas.ORANGE, lw=3, alpha=0.5)
        axes.plot(confidence, accuracy, "o-", color=canvas.BLUE, ms=4)
        axes.set_title(f"{row.variant}\nECE {row.ece_test:.3f}", fontsize=7)
        axes.grid(alpha=0.3)
        below.bar(confidence, [100 * number / sum(sentences) for number in sentences], width=0.03, color="0.6")
        below.set_xlabel("confidence")
    panels[0][0].set_ylabel("accuracy")
    panels[1][0].set_ylabel("sentences, %")
    return figure


def both_sizes(results: Results):
    """Points lost, and how much smaller and faster: every method on the small and on the large network."""
    pairs = comparisons.at_both_sizes(results)[::-1]
    columns = {"f1_drop_points": "F1 points lost", "size_ratio": "times smaller", "latency_speedup": "times faster"}
    figure, panels = canvas.new_panels(1, len(columns), width=8.2, height=1.0 + 0.24 * len(pairs), sharey=True)
    for axes, (column, label) in zip(panels[0], columns.items(), strict=True):
        for place, pair in enumerate(pairs):
            for row, style, shift in ((pair.small, {"mfc": "white"}, 0.15), (pair.large, {}, -0.15)):
                size_point(axes, row, column, place + shift, style)
        canvas.label_axes(axes, label, grid="x")
        if column == "f1_drop_points":
            axes.axvline(0, color="0.8", lw=0.8, zorder=0)
        else:
            canvas.log_scale(axes, "x")
    panels[0][0].set_yticks(range(len(pairs)), [pair.method for pair in pairs], fontsize=8)
    for label, style in (("small", {"mfc": "white"}), ("large", {})):
        panels[0][-1].plot([], [], "o", color=canvas.BLUE, ms=5, label=label, **style)
    panels[0][-1].legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return figure


def size_point(axes, row, column: str, place: float, style: dict) -> None:
    """A row's value with its interval, where it has one; nothing where the value was not measured."""
    if (value := getattr(row, column)) is None:
        return
    errors = {"f1_drop_points": canvas.drop_errors, "latency_speedup": canvas.speedup_errors}.get(column)
    bar = {"xerr": errors([row])} if errors else {}
    axes.errorbar(value, place, **bar, fmt="o", color=canvas.BLUE, ms=4.5, lw=1, capsize=2, **style)


def seeded_rows(results: Results) -> list:
    """The variants on the Pareto frontier of F1 and size, and the champions', that have several seeds."""
    rows = {row.variant: row for row in comparisons.pareto(results.variants, "size_mb")}
    rows |= {row.variant: row for row in results.variants if row.champions}
    return [row for row in rows.values() if row.seeds > 1 and row.variant != results.environment["baseline"]]


def seed_spread(results: Results):
    """F1 points lost to the same seed's baseline: each seed, their mean, and its interval."""
    rows = seeded_rows(results)
    of_seeds = by_variant(row for row in results.rows if row.f1_drop_points is not None)
    figure, axes = canvas.new_axes(6.4, 0.9 + 0.24 * len(rows))
    axes.axvline(0, color="0.8", lw=0.8, zorder=0)
    for place, row in enumerate(rows[::-1]):
        colour, _ = canvas.FAMILY_STYLES[family_of(row.variant, results)]
        drops = [of_seed.f1_drop_points for of_seed in of_seeds[row.variant]]
        axes.plot(drops, [place] * len(drops), "o", color=colour, mfc="none", ms=5)
        style = {"fmt": "|", "color": colour, "ms": 11, "mew": 2, "elinewidth": 1, "capsize": 2}
        axes.errorbar(row.f1_drop_points, place, xerr=canvas.drop_errors([row]), **style)
    axes.set_yticks(range(len(rows)), [row.variant for row in rows[::-1]], fontsize=8)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    canvas.label_axes(axes, "F1 points lost; circles: seeds, bars: their mean and its 95 % interval", grid="x")
    return figure
