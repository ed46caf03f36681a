"""Results to pictures: what is lost over size and latency, and the curves of each chapter.

Reads results/<profile>/; writes figures/<profile>/<name>.png (for the screen) and .pdf (for print).
A chapter that has no rows in the profile has no picture.
Example: python scripts/figures.py --profile minilm
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from compress.cli import cores, main_guard, profile_parser
from compress.report.questions import LOST
from compress.results.reading import by_variant

# Okabe and Ito (2008): told apart by colour-blind readers, too; every chapter has its own marker besides.
CHAPTERS = {
    "baseline": ("#000000", "o"),
    "HW1": ("#0072B2", "s"),
    "HW2": ("#D55E00", "D"),
    "HW3": ("#009E73", "^"),
    "HW4": ("#CC79A7", "v"),
    "HW6": ("#E69F00", "P"),
}
F1_LABEL = "F1 on the test set, 95 % interval"


def new_axes(width=6.4, height=3.8):
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")


SHOWN = 0.16  # F1 below the best: further down lie only models that are of no use, and would squeeze the rest


def lowest_shown(rows) -> float:
    """The least F1 for which a figure of F1 over a cost has room."""
    return max(0.0, max(row["f1_test"] for row in rows) - SHOWN)


def error_bars(rows) -> list[list[float]]:
    """Lengths below and above the F1 of each row, as errorbar takes them."""
    return [
        [max(row["f1_test"] - row["f1_ci_low"], 0) for row in rows],
        [max(row["f1_ci_high"] - row["f1_test"], 0) for row in rows],
    ]


def pareto(rows, column: str) -> list[dict]:
    """The rows that no other row beats in F1 at the same or a lower `column`, in its order.

    Champions are copies of other rows, and left out: a second measurement of the same file beats nothing.
    """
    frontier, best = [], -1.0
    rivals = [row for row in rows if row["method"] != "champion"]
    for row in sorted(rivals, key=lambda row: (row[column], -row["f1_test"])):
        if row["f1_test"] > best:
            frontier.append(row)
            best = row["f1_test"]
    return frontier


def trade_off(rows, column: str, label: str):
    """F1 over a cost (log scale), one point per variant; the Pareto frontier is drawn and named, the rest is faded.

    Champions are ringed and named in bold.
    """
    from matplotlib import ticker

    rows = [row for row in rows if row[column] is not None]
    frontier = pareto(rows, column)
    figure, axes = new_axes(7.2, 4.4)
    axes.step(
        [row[column] for row in frontier],
        [row["f1_test"] for row in frontier],
        where="post",
        color="0.6",
        lw=1,
        zorder=1,
    )
    for chapter, (colour, marker) in CHAPTERS.items():
        of_chapter = [row for row in rows if row["chapter"] == chapter]
        for alpha, group in (
            (1.0, [row for row in of_chapter if row in frontier]),
            (0.35, [row for row in of_chapter if row not in frontier]),
        ):
            axes.errorbar(
                [row[column] for row in group],
                [row["f1_test"] for row in group],
                yerr=error_bars(group),
                marker=marker,
                color=colour,
                linestyle="none",
                capsize=2,
                ms=5,
                lw=1,
                alpha=alpha,
                label=chapter if alpha == 1.0 and of_chapter else None,
            )
    champions = [row for row in rows if row["method"] == "champion"]
    axes.plot(
        [row[column] for row in champions],
        [row["f1_test"] for row in champions],
        "o",
        color="black",
        mfc="none",
        ms=11,
        label="champion" if champions else None,
    )
    values = [row[column] for row in rows]
    axes.set_xlim(min(values) / 2, max(values) * 2)
    named = sorted([*frontier, *champions], key=lambda row: row[column])
    steps = name_steps([(row[column], row["variant"]) for row in named], 4 * max(values) / min(values))
    for step, row in zip(steps, named, strict=True):
        # Names in steps below all points, each tied to its own: beside them they would lie on each other.
        axes.annotate(
            row["variant"],
            (row[column], row["f1_ci_low"]),
            (row[column], 0.36 - 0.33 * step / max(9, *steps)),
            textcoords=("data", "axes fraction"),
            arrowprops={"arrowstyle": "-", "color": "0.75", "lw": 0.6},
            ha="center",
            fontsize=7,
            fontweight="bold" if row in champions else None,
            bbox={"color": "white", "alpha": 0.8, "pad": 0.5},
            zorder=5 - step / 100,  # the long lines pass behind the names above
        )
    axes.set_xscale("log")
    axes.set_ylim(lowest_shown(rows), None)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel(f"{label}, log scale")
    axes.set_ylabel(F1_LABEL)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right", ncols=3, frameon=False, fontsize=8)
    return figure


def name_steps(named: list[tuple[float, str]], extent: float, width=6.5, letter=0.06) -> list[int]:
    """For names centred at these places, in order, the uppermost step at which each lies on none before it.

    extent: largest over smallest place of the log axis, which is `width` inches long; a letter takes `letter` of them.
    """
    from math import log

    ends: list[float] = []  # of the last name at each step
    found = []
    for place, name in named:
        centre, half = width * log(place) / log(extent), letter * len(name) / 2
        step = next((i for i, end in enumerate(ends) if end < centre - half), len(ends))
        ends[step : step + 1] = [centre + half]
        found.append(step)
    return found


def base_line(axes, base) -> None:
    axes.axhspan(base["f1_ci_low"], base["f1_ci_high"], color="0.92", zorder=0)
    axes.axhline(base["f1_test"], color="0.5", lw=1, zorder=0, label=base["variant"])


def lines(axes, series: dict[str, list[tuple[float, dict]]], seeds: dict[str, dict]) -> None:
    """One line per name of points (x, row), with intervals and, dotted, what lies between the seeds of a variant."""
    for i, (name, points) in enumerate(series.items()):
        colour, marker = list(CHAPTERS.values())[1 + i]
        rows = [row for _, row in points]
        axes.errorbar(
            [x for x, _ in points],
            [row["f1_test"] for row in rows],
            yerr=error_bars(rows),
            marker=marker,
            color=colour,
            capsize=3,
            label=name,
        )
        for x, row in points:
            if of_seeds := seeds.get(row["variant"]):
                axes.vlines(x, of_seeds["f1_min"], of_seeds["f1_max"], color=colour, lw=1, ls=":")
    axes.set_ylabel(f"{F1_LABEL}{'; dotted: seeds' if seeds else ''}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def sparsity_curve(by_method, base, seeds, removed: dict[str, float]):
    """F1 over the share of zeros: one shot without training, and gradually by either criterion.

    Beside it the speed of what was timed, over the share of zeros or of what was removed (`removed`, by variant).
    """
    import matplotlib.pyplot as plt

    series: dict[str, list] = {}
    for row, options in by_method["prune"]:
        name = "one shot, no training" if options["training"] is None else f"gradual, {options['criterion']}"
        if options["pattern"] != "unstructured":
            name = f"gradual, {options['pattern']}"
        series.setdefault(name, []).append((100 * options["sparsity"], row))
    figure, (axes, speed) = plt.subplots(1, 2, figsize=(8.2, 3.8), layout="constrained", width_ratios=(3, 2))
    base_line(axes, base)
    lines(axes, series, seeds)
    axes.set_xlabel("zeros in the encoder's matrices, %")
    places = [
        ("zeros", "D", "#D55E00", [(100 * options["sparsity"], row) for row, options in by_method["prune"]]),
        (
            "heads and neurons removed",
            "s",
            "#0072B2",
            [
                (100 * removed[row["variant"]], row)
                for row, options in by_method.get("structured", ())
                if options["parent"] == base["variant"]  # not what was taken out of a student
            ],
        ),
    ]
    for name, marker, colour, points in places:
        timed = {x: row["latency_speedup"] for x, row in sorted(points, key=lambda p: p[0]) if row["latency_speedup"]}
        speed.plot([0, *timed], [1, *timed.values()], color=colour, marker=marker, label=name)
    speed.set_ylim(0, None)
    speed.set_xlabel("of the encoder's matrices, %")
    speed.set_ylabel("times faster at batch 1")
    speed.grid(alpha=0.3)
    speed.legend(frameon=False)
    return figure


def codebook_curve(by_method, base, seeds):
    """F1 over the number of distinct values per matrix, with k-means alone and with trained centroids."""
    from matplotlib import ticker

    series: dict[str, list] = {}
    for row, options in by_method["cluster"]:
        name = "trained centroids" if options["training"] else "k-means alone"
        series.setdefault(name + (", price on bits" if options["rate"] else ""), []).append((options["k"], row))
    figure, axes = new_axes()
    base_line(axes, base)
    lines(axes, series, seeds)
    for k, row in series.get("k-means alone", ()):
        axes.annotate(f"{row['size_mb']:.1f} MB", (k, row["f1_test"]), (0, -14), textcoords="offset points", fontsize=7)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.set_xlabel("k, distinct values per matrix, log scale")
    return figure


def students(by_method, base, by_name):
    """F1 over the minutes of training; a marker per shape of student, which the first variant of that shape names.

    Minutes are those of all trainings from the baseline on: a student may have been cut from another.
    """
    figure, axes = new_axes(7.2, 4.4)
    base_line(axes, base)
    shapes, markers = {}, "^sDvPoXph"
    for row, options in by_method["distill"]:
        shape = row["parent"], str(options["student"])
        _, marker = shapes.setdefault(shape, (row["variant"], markers[len(shapes) % len(markers)]))
        taught, random = options["training"]["soft_weight"] > 0, options["initialization"] == "random"
        axes.errorbar(
            minutes_from(base, row, by_name),
            row["f1_test"],
            yerr=error_bars([row]),
            color="#009E73" if taught else "#E69F00",
            fillstyle="none" if random else "full" if taught else "left",
            marker=marker,
            capsize=2,
            lw=1,
        )
    for name, marker in shapes.values():
        axes.plot([], [], marker, color="0.3", label=name)
    axes.legend(loc="upper left", fontsize=8)
    axes.set_xlim(0, None)
    axes.set_xlabel("training since the baseline, minutes (full: teacher, half: labels alone, hollow: random start)")
    axes.set_ylabel(F1_LABEL)
    axes.grid(alpha=0.3)
    return figure


def minutes_from(base, row, by_name) -> float:
    """Minutes of the row's training and of all those between it and the baseline; those of the first seed."""
    seconds = 0.0
    while row is not None and row["variant"] != base["variant"]:
        seconds += row["train_seconds"] or 0
        row = by_name.get(row["parent"])
    return seconds / 60


def bars(rows, base):
    """F1 of each row as a horizontal bar with its interval."""
    figure, axes = new_axes(6.4, 0.6 + 0.32 * len(rows))
    axes.axvspan(base["f1_ci_low"], base["f1_ci_high"], color="0.92", zorder=0)
    axes.axvline(base["f1_test"], color="0.5", lw=1, zorder=0)
    names = [row["variant"] for row in rows][::-1]
    axes.errorbar(
        [row["f1_test"] for row in rows[::-1]], names, xerr=error_bars(rows[::-1]), fmt="o", color="#009E73", capsize=3
    )
    axes.set_xlabel(f"{F1_LABEL} (grey: {base['variant']})")
    axes.grid(alpha=0.3, axis="x")
    return figure


def heat_map(axes, values, norm):
    """Cells [rows, columns] as vectors (imshow would be pixels in print), the first row at the top."""
    rows, columns = values.shape
    cells = axes.pcolormesh(range(columns), range(rows), values, cmap="cividis", norm=norm, edgecolors="face")
    axes.set_ylim(rows - 0.5, -0.5)
    return cells


def colour_bar(cells, axes, **options):
    """The scale of a heat map, as vectors too."""
    bar = axes[0].figure.colorbar(cells, ax=axes, **options)
    bar.solids.set(rasterized=False, edgecolor="face")
    return bar


def sensitivity_map(table):
    """Logit error and validation F1 with one group of tensors quantized, for every group and bit width."""
    import numpy as np

    rows = [row for row in table if row["bits"] < 32]
    names = list(dict.fromkeys(row["group"] for row in rows))
    bits = sorted({row["bits"] for row in rows}, reverse=True)
    cells = {(row["group"], row["bits"]): row for row in rows}
    figure, axes = new_axes(5.2, 0.8 + 0.27 * len(names))
    error = np.array([[cells[name, b]["rms_error"] for b in bits] for name in names])
    image = heat_map(axes, error, "log")
    for i, name in enumerate(names):
        for j, b in enumerate(bits):
            drop = 100 * (table[0]["f1"] - cells[name, b]["f1"])
            dark = error[i, j] < np.sqrt(error.min() * error.max())
            axes.text(j, i, f"{drop:+.1f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xticks(range(len(bits)), [f"{b} bits" for b in bits])
    axes.set_yticks(range(len(names)), names)
    colour_bar(image, [axes], label="rms error of the logits")
    axes.set_title("number: validation F1 points lost", fontsize=8)
    return figure


# Columns of the grid: what a model's name is followed by where it runs so.
CELLS = {
    "": "torch\nfp32",
    "-torch-bf16": "torch\nbf16",
    "-torch-int8": "torch\nint8",
    "-compiled-fp32": "compiled\nfp32",
    "-compiled-bf16": "compiled\nbf16",
    "-ort-fp32": "ORT\nfp32",
    "-ort-fp16": "ORT\nfp16",
    "-ort-int8": "ORT\nint8",
    "-ov-fp32": "OpenVINO\nfp32",
    "-ov-default": "OpenVINO\ndefault",
    "-ov-int8": "OpenVINO\nint8",
}


def grid_cells(by_name, baseline: str) -> dict[tuple[str, str], dict]:
    """Measured rows by (model, engine's suffix), for the models that run in both engines."""
    models = [name for name in by_name if {name + "-ort-fp32", name + "-ov-fp32"} <= set(by_name)]
    # The baseline's own int8 row is HW1's.
    other = {(baseline, "-torch-int8"): "int8-dynamic"}
    names = {(model, suffix): other.get((model, suffix), model + suffix) for model in models for suffix in CELLS}
    return {cell: by_name[name] for cell, name in names.items() if name in by_name}


def grid(cells):
    """Every model in every engine: how many times faster it answers one sentence, and the F1 points it loses."""
    import numpy as np

    models = list(dict.fromkeys(model for model, _ in cells))
    columns = [suffix for suffix in CELLS if any((model, suffix) in cells for model in models)]
    speed = np.full((len(models), len(columns)), np.nan)
    figure, axes = new_axes(1.6 + 0.72 * len(columns), 0.9 + 0.52 * len(models))
    for i, model in enumerate(models):
        for j, suffix in enumerate(columns):
            row = cells.get((model, suffix))
            if row is not None and row["latency_speedup"] is not None:
                speed[i, j] = row["latency_speedup"]
    image = heat_map(axes, speed, "log")
    middle = np.sqrt(np.nanmin(speed) * np.nanmax(speed))
    for i, model in enumerate(models):
        for j, suffix in enumerate(columns):
            if np.isnan(speed[i, j]):
                continue
            # + 0.0 turns a rounded -0.0 into 0.0
            text = f"{speed[i, j]:.1f}x\n{round(-cells[model, suffix]['f1_drop_points'], 1) + 0.0:+.1f}"
            axes.text(
                j, i, text, ha="center", va="center", fontsize=7, color="white" if speed[i, j] < middle else "black"
            )
    axes.set_xticks(range(len(columns)), [CELLS[suffix] for suffix in columns], fontsize=7)
    axes.set_yticks(range(len(models)), models)
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50) if np.nanmin(speed) <= tick <= np.nanmax(speed)]
    bar = colour_bar(image, [axes], label="times faster at batch 1", ticks=ticks, format="%g")
    bar.minorticks_off()
    axes.set_title("above: times faster than the fine-tuned fp32 PyTorch model; below: F1 points gained", fontsize=8)
    return figure


def shapes(name, slow, fast):
    """How many times faster one variant is than the other, over batch and length, for each number of threads."""
    import matplotlib.pyplot as plt
    import numpy as np

    ratio = np.array(slow["milliseconds"]) / np.array(fast["milliseconds"])
    figure, panels = plt.subplots(1, len(ratio), figsize=(3.6 * len(ratio), 2.8), layout="constrained", squeeze=False)
    norm = plt.Normalize(ratio.min(), ratio.max())
    for axes, values, times, threads in zip(panels[0], ratio, fast["milliseconds"], fast["threads"], strict=True):
        image = heat_map(axes, values, norm)
        for (b, n), value in np.ndenumerate(values):
            colour = "white" if norm(value) < 0.5 else "black"
            text = f"{value:.1f}x\n{times[b][n]:.3g} ms"
            axes.text(n, b, text, ha="center", va="center", fontsize=6.5, color=colour)
        axes.set_xticks(range(len(fast["lengths"])), fast["lengths"])
        axes.set_yticks(range(len(fast["batches"])), fast["batches"])
        axes.set_xlabel("length, pieces")
        axes.set_title(f"{threads} thread{'s' if threads > 1 else ''}", fontsize=9)
    panels[0][0].set_ylabel("batch")
    colour_bar(image, list(panels[0]), label=f"times faster: {name}")
    return figure


def lineage(name: str, methods, by_name) -> list[dict]:
    """The rows that lead from the baseline to what a champion was chosen from: each adds one ingredient."""
    row = by_name[methods[name]["details"]["chosen"]]
    found = [row]
    while row["parent"]:
        row = by_name[row["parent"]]
        found.insert(0, row)
    return found


def step_style(less: bool) -> dict:
    """A bar of what a step takes off or, hatched, adds: told apart in grey, too."""
    return {"color": "#0072B2"} if less else {"facecolor": "#D55E00", "edgecolor": "white", "hatch": "////", "lw": 0}


def waterfall(rows, champion):
    """What each ingredient of a champion takes off bytes and latency and does to F1, from the baseline to the whole."""
    import matplotlib.pyplot as plt

    names = [row["variant"] for row in rows]
    places = list(range(len(rows)))[::-1]
    figure, panels = plt.subplots(1, 3, figsize=(7.4, 0.9 + 0.36 * len(rows)), layout="constrained", sharey=True)
    columns = (("size_mb", "MB on disk"), ("latency_ms", "ms at batch 1"))
    for axes, (column, label) in zip(panels, columns, strict=False):
        before = 0.0
        for place, row in zip(places, rows, strict=True):
            # A step that was not timed leaves the time where it was: its arithmetic is its parent's.
            value = before if row[column] is None else row[column]
            whole = row is rows[0] or row is rows[-1]
            axes.barh(place, value if whole else before - value, left=0 if whole else value, color="0.75")
            if row is not rows[0]:
                axes.barh(place, before - value, left=value, **step_style(value < before))
                axes.plot([before, before], [place, place + 1], color="0.4", lw=0.6)
            text = " not timed" if row[column] is None else f" {value:.3g}"
            axes.text(max(value, before), place, text, va="center", fontsize=7)
            before = value
        axes.set_xlabel(label)
        axes.set_xlim(0, 1.25 * max(row[column] or 0 for row in rows))
    before = rows[0]["f1_drop_points"]
    for place, row in zip(places, rows, strict=True):
        lost = row["f1_drop_points"]
        panels[2].barh(place, lost - before, left=before, **step_style(lost < before))
        error = [[lost - row["f1_drop_ci_low"]], [row["f1_drop_ci_high"] - lost]]
        panels[2].errorbar(lost, place, xerr=error, fmt="o", color="black", ms=4, lw=1, capsize=2)
        before = lost
    panels[2].axvline(0, color="0.5", lw=0.8, zorder=0)
    panels[2].set_xlabel("F1 points lost, 95 % interval")
    panels[0].set_yticks(places, names, fontsize=7)
    figure.suptitle(
        f"{champion}: blue is taken off, hatched orange added by the step; grey is what there is", fontsize=8
    )
    return figure


def equal_budgets(choices, won: list[str], unit: str):
    """Per budget the points that each family's choice loses, with the paired interval; the filled one won."""
    import matplotlib.pyplot as plt

    families = list(dict.fromkeys(name for _, choice in choices for name in choice))[::-1]
    figure, panels = plt.subplots(
        1, len(choices), figsize=(8.2, 0.9 + 0.3 * len(families)), layout="constrained", sharey=True, sharex=True
    )
    for axes, (limit, choice), best in zip(panels, choices, won, strict=True):
        for place, name in enumerate(families):
            row = choice.get(name)
            if row is None:
                axes.text(0.5, place, "nothing fits", ha="center", va="center", fontsize=6.5, color="0.45",
                          transform=axes.get_yaxis_transform())  # fmt: skip
                continue
            lost = row["f1_drop_points"]
            axes.errorbar(
                lost,
                place,
                xerr=[[lost - row["f1_drop_ci_low"]], [row["f1_drop_ci_high"] - lost]],
                fmt="D" if name == best else "o",
                color="#0072B2" if name == best else "0.35",
                mfc="#0072B2" if name == best else "white",
                capsize=2,
                ms=5,
                lw=1,
            )
            axes.annotate(
                row["variant"], (0.02, place - 0.32), xycoords=axes.get_yaxis_transform(), fontsize=5, color="0.3",
                va="center",
            )  # fmt: skip
        axes.axvline(0, color="0.5", lw=0.8, zorder=0)
        axes.set_title(f"at most {limit:.3g} {unit}", fontsize=8)
        axes.grid(alpha=0.3, axis="x")
    panels[0].set_yticks(range(len(families)), families)
    panels[0].set_ylim(-0.6, len(families) - 0.5)
    figure.supxlabel("F1 points lost on the test set, paired 95 % interval; filled: best on validation", fontsize=8)
    return figure


def domain_shift(losses):
    """Points lost out of domain over points lost at home, a marker per chapter; on the line both are equal."""
    figure, axes = new_axes(6.4, 4.6)
    near = [loss for loss in losses if loss[1] <= LOST]
    ends = min(home for _, home, _ in near) - 0.5, max(home for _, home, _ in near) + 0.5
    axes.plot(ends, ends, color="0.5", lw=1, zorder=0)
    axes.axhline(0, color="0.8", lw=0.8, zorder=0)
    for chapter, (colour, marker) in CHAPTERS.items():
        points = [(home, away) for row, home, away in near if row["chapter"] == chapter]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=colour, ms=5, alpha=0.7, label=chapter)
    for row, home, away in near:
        if row["method"] == "champion":
            axes.plot(home, away, "o", color="black", mfc="none", ms=11)
            axes.annotate(row["variant"], (home, away), (9, -9), textcoords="offset points", fontsize=7)
    axes.set_xlabel("F1 points lost at home")
    axes.set_ylabel("F1 points lost out of domain, mean of three")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    return figure


def reliability_diagram(rows, bins):
    """Accuracy over confidence of each row, the diagonal where they are equal, and how many sentences lie where."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        2, len(rows), figsize=(2.5 * len(rows) + 0.5, 3.6), layout="constrained", sharex=True, sharey="row",
        height_ratios=(3, 1), squeeze=False,
    )  # fmt: skip
    for (axes, below), row in zip(panels.T, rows, strict=True):
        points = [point for point in bins if point["variant"] == row["variant"]]
        confidence = [point["confidence"] for point in points]
        accuracy = [point["accuracy"] for point in points]
        axes.plot([0.5, 1], [0.5, 1], color="0.5", lw=1)
        axes.vlines(confidence, accuracy, confidence, color="#D55E00", lw=3, alpha=0.5)
        axes.plot(confidence, accuracy, "o-", color="#0072B2", ms=4)
        axes.set_title(f"{row['variant']}\nECE {row['ece_test']:.3f}", fontsize=7)
        axes.grid(alpha=0.3)
        total = sum(point["sentences"] for point in points)
        below.bar(confidence, [100 * point["sentences"] / total for point in points], width=0.03, color="0.6")
        below.set_xlabel("confidence")
    panels[0][0].set_ylabel("accuracy")
    panels[1][0].set_ylabel("sentences, %")
    return figure


def flip_cloud(rows, silent):
    """Share of answers that differ from the baseline's over the F1 points lost, a marker per chapter."""
    figure, axes = new_axes()
    for chapter, (colour, marker) in CHAPTERS.items():
        points = [(row["f1_drop_points"], 100 * row["flip_rate"]) for row in rows if row["chapter"] == chapter]
        points = [point for point in points if abs(point[0]) <= LOST]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=colour, ms=5, alpha=0.7, label=chapter)
    if silent:
        place = (silent["f1_drop_points"], 100 * silent["flip_rate"])
        axes.plot(*place, "o", color="black", mfc="none", ms=11)
        line = {"arrowstyle": "-", "color": "0.6", "lw": 0.6}
        axes.annotate(silent["variant"], place, (-15, 70), textcoords="offset points", fontsize=7, arrowprops=line)
    axes.set_ylim(0, None)
    axes.set_xlabel("F1 points lost")
    axes.set_ylabel("answers unlike the baseline's, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def seed_spread(names, rows, over):
    """F1 points lost to the seed's own baseline: each seed, their mean, and the mean's interval over test sentences."""
    figure, axes = new_axes(6.4, 0.9 + 0.24 * len(names))
    axes.axvline(0, color="0.8", lw=0.8, zorder=0)
    drops = by_variant(row for row in rows if row["f1_drop_points"] is not None)
    for place, name in enumerate(names[::-1]):
        of_seed = [row["f1_drop_points"] for row in drops[name]]
        mean = over[name]["drop_mean"]
        ends = [[mean - over[name]["drop_ci_low"]], [over[name]["drop_ci_high"] - mean]]
        colour, _ = CHAPTERS[drops[name][0]["chapter"]]
        axes.plot(of_seed, [place] * len(of_seed), "o", color=colour, mfc="none", ms=5)
        axes.errorbar(mean, place, xerr=ends, fmt="|", color=colour, ms=11, mew=2, elinewidth=1, capsize=2)
    axes.set_yticks(range(len(names)), names[::-1], fontsize=8)
    axes.set_xlabel("F1 points lost; rings are seeds, bars their mean and its interval")
    axes.grid(axis="x", alpha=0.3)
    return figure


def load_curves(rows):
    """p99 and goodput over the offered load, a line per server."""
    import matplotlib.pyplot as plt
    from matplotlib import ticker

    figure, panels = plt.subplots(1, 2, figsize=(7.4, 4.2), layout="constrained")
    opened = [row for row in rows if row["layout"] == "open-loop" and row["latency_ms_p99"] is not None]
    for (name, series), marker in zip(by_variant(opened).items(), "osD^vPX*<>hp", strict=False):
        series = sorted(series, key=lambda row: row["offered_rps"])
        for axes, column in zip(panels, ("latency_ms_p99", "goodput_rps"), strict=True):
            points = ([row["offered_rps"] for row in series], [row[column] for row in series])
            axes.plot(*points, marker=marker, ms=4, lw=1, label=name)
    for axes, label in zip(panels, ("p99 of what was answered, ms", "answered in time, per second"), strict=True):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("offered requests per second")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
            axis.set_minor_locator(ticker.NullLocator())
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7, frameon=False
    )
    return figure


def peer_bars(rows):
    """What each server answers at most, every setting of a peer's sweep in grey, and p99 at 0.7 of that."""
    saturated = {row["variant"]: row for row in rows if row["layout"] == "saturation"}
    sweeps = by_variant(row for row in rows if row["layout"].startswith("sweep-"))
    tried = {name: [row["achieved_rps"] for row in several] for name, several in sweeps.items()}
    late = {row["variant"]: row["latency_ms_p99"] for row in rows if row["share"] == 0.7}
    names = sorted(saturated, key=lambda name: saturated[name]["achieved_rps"])
    figure, axes = new_axes(7.2, 0.9 + 0.4 * len(names))
    for place, name in enumerate(names):
        best = saturated[name]["achieved_rps"]
        axes.barh(place, best, color="0.6" if name.startswith("peer-") else "#0072B2", height=0.6)
        axes.plot(tried.get(name, []), [place] * len(tried.get(name, [])), "k|", ms=9)
        p99 = late.get(name)
        axes.text(
            max(best, *tried.get(name, [best])),
            place,
            f"  {best:.0f}/s" + ("" if p99 is None else f", p99 {p99:.0f} ms at 0.7 of it"),
            va="center",
            fontsize=7,
        )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlim(0, 1.45 * max(row["achieved_rps"] for row in saturated.values()))
    axes.set_xlabel("requests per second at saturation; ticks: settings that were tried")
    return figure


def draw(profile, results) -> dict:
    """Every figure by name that the profile has rows for. All of them show quality."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42})
    plt.rcParams["figure.max_open_warning"] = 0  # all are drawn, then all are written
    from compress.results.reading import is_beside

    if profile.no_quality:
        return {}
    rows = [row for row in results.variants if row["f1_test"] is not None]
    base = next(row for row in rows if row["variant"] == profile.baseline)
    by_method: dict[str, list] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append((row, results.methods[row["variant"]]["options"]))
    figures = {
        "f1_vs_size": trade_off(rows, "size_mb", "size on disk, MB"),
        "f1_vs_latency": trade_off(rows, "latency_ms", "latency at batch 1, ms (the baseline's over the speed-up)"),
        "f1_vs_memory": trade_off(rows, "peak_rss_mb", "peak resident memory, MB"),
    }
    by_name = {row["variant"]: row for row in rows}
    over = {row["variant"]: row for row in results.seeds if row["variant"] != profile.baseline}
    if "prune" in by_method:
        removed = {name: method["details"].get("encoder_removed") for name, method in results.methods.items()}
        figures["sparsity"] = sparsity_curve(by_method, base, over, removed)
    if "cluster" in by_method:
        figures["codebook"] = codebook_curve(by_method, base, over)
    if "distill" in by_method:
        figures["students"] = students(by_method, base, by_name)
        figures["kd_ablation"] = bars([row for row, _ in by_method["distill"]], base)
    for variant, method in results.methods.items():
        if "sensitivity" in method["details"]:
            figures[f"sensitivity_{variant}"] = sensitivity_map(method["details"]["sensitivity"])
    if cells := grid_cells(by_name, profile.baseline):
        figures["grid"] = grid(cells)
    shaped = {name: method["measured"].get("shapes") for name, method in results.methods.items()}
    for row, _ in by_method.get("champion", ()):
        name = row["variant"]
        figures[f"ablation_{name}"] = waterfall(lineage(name, results.methods, by_name), name)
        if shaped[name] and shaped[profile.baseline]:
            figures[f"shapes_{name}"] = shapes(name, shaped[profile.baseline], shaped[name])
    figures |= draw_questions(results, rows, base)
    shown = [*pareto(rows, "size_mb"), *(row for row, _ in by_method.get("champion", ()))]
    if names := [name for name in dict.fromkeys(row["variant"] for row in shown) if name in over]:
        figures["seeds"] = seed_spread(names, results.rows, over)
    own, beside = ([row for row in results.serving if is_beside(row["variant"]) == side] for side in (False, True))
    if own:
        figures["serving"] = load_curves([row for row in own if row["variant"] in profile_servers(profile)])
        figures["serving_ablation"] = load_curves(
            [row for row in own if row["variant"].startswith(profile.serving.ablated)]
        )
    if beside:
        one_model = [row for row in beside if not row["variant"].endswith("five-services")]
        figures["serving_peers"] = load_curves(one_model)
        figures["serving_peers_saturation"] = peer_bars(one_model)
    return figures


def draw_questions(results, rows, base) -> dict:
    """The figures of the report's questions."""
    from compress.report import questions

    methods = results.methods
    rivals = questions.compressed(rows, methods)
    figures = {}
    for name, column, unit in (("equal_bytes", "size_mb", "MB"), ("equal_latency", "latency_ms", "ms")):
        choices = questions.choices(rows, methods, column, base)
        won = [questions.winner(choice, methods) for _, choice in choices]
        figures[name] = equal_budgets(choices, won, unit)
    champions = [row for row in rows if row["method"] == "champion"]
    if losses := questions.domain_losses([*rivals, *champions], base):
        figures["domain_shift"] = domain_shift(losses)
    figures["flips"] = flip_cloud(rivals, questions.silent_flips(rows, methods))
    if results.reliability:
        figures["reliability"] = reliability_diagram(questions.calibrated(rows, methods, base), results.reliability)
    return figures


def profile_servers(profile) -> list[str]:
    """What is served as a user would, without the ablation's servers."""
    return [*profile.serving.variants, "five-services"]


def save(folder: Path, name: str, figure) -> None:
    """Writes a figure as <name>.png and .pdf, without a date: the same results give the same bytes."""
    from compress.files import atomic_path

    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        with atomic_path(folder / f"{name}.{kind}") as temporary:
            figure.savefig(temporary, format=kind, dpi=160, metadata=metadata)


def main(args: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("agg")
    from compress.config.profile import load_profile
    from compress.results.reading import read_results

    profile = load_profile(args.profile)
    figures = draw(profile, read_results(profile))
    profile.figures.mkdir(parents=True, exist_ok=True)  # empty if there is nothing to draw: make looks for it
    with ProcessPoolExecutor(cores()) as pool:  # nine tenths of the time is drawing
        list(pool.map(partial(save, profile.figures), figures, figures.values()))
    for path in profile.figures.glob("*"):
        if path.stem not in figures:
            path.unlink()  # the report shows what lies here
    print(f"{profile.figures}: {len(figures)} figures")


if __name__ == "__main__":
    main_guard(main, profile_parser(__doc__))
