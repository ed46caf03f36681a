"""Figures of the chapters: sparsity, codebooks, students, sensitivity, engines and the champions' steps."""

from itertools import cycle

import matplotlib
import numpy as np
from compress.report import canvas, comparisons
from compress.results.reading import PooledRow, Results

ENGINES = {"ort": "ORT", "ov": "OpenVINO"}
SPEEDUP_TICKS = (0.5, 1, 2, 5, 10, 20, 50)
STUDENT_MARKERS = "^sDvPoXph"


def sparsity_curve(results: Results):
    """F1 over the share of zeros, by training and criterion."""
    series: dict[str, list] = {}
    for row in comparisons.of_method(results, "prune"):
        rule = row.options["criterion" if row.options["pattern"] == "unstructured" else "pattern"]
        name = f"gradual, {rule}" if row.options["training"] else "one shot, no training"
        series.setdefault(name, []).append((100 * row.options["sparsity"], row))
    figure, axes = canvas.new_axes()
    f1_lines(axes, series, "zeros in the encoder's matrices, %", results)
    return figure


def f1_lines(axes, series: dict[str, list[tuple]], label: str, results: Results) -> None:
    """One line per name through its points (x, row), and the baseline's F1; the label is that of x."""
    canvas.baseline_line(axes, results)
    styles = cycle(canvas.LINE_STYLES)
    for (colour, marker), (name, points) in zip(styles, series.items(), strict=False):
        rows = [row for _, row in points]
        axes.errorbar(
            [x for x, _ in points],
            [row.comparable_f1 for row in rows],
            yerr=canvas.f1_errors(rows),
            **{"marker": marker, "color": colour, "capsize": 3, "label": name},
        )
    canvas.label_axes(axes, label, canvas.F1_LABEL)
    axes.legend(frameon=False)


def codebook_curve(results: Results):
    """F1 over the number of distinct values per matrix, with k-means alone and with trained centroids."""
    series: dict[str, list] = {}
    for row in comparisons.of_method(results, "cluster"):
        name = "trained centroids" if row.options["training"] else "k-means alone"
        name += ", with a price per bit" if row.options["rate"] else ""
        series.setdefault(name, []).append((row.options["k"], row))
    figure, axes = canvas.new_axes()
    f1_lines(axes, series, "k, distinct values per matrix, log scale", results)
    for k, row in series.get("k-means alone", ()):
        axes.annotate(f"{row.size_mb:.1f} MB", (k, row.comparable_f1), (6, -12), textcoords="offset points", fontsize=7)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    return figure


def student_curve(results: Results):
    """F1 over the minutes of training since the baseline, parents included; one marker per shape of student."""
    figure, axes = canvas.new_axes(7.2, 4.4)
    canvas.baseline_line(axes, results)
    rows = comparisons.of_method(results, "distill")
    names: dict[tuple, str] = {}  # of the first variant, by shape
    for row in rows:
        names.setdefault((row.parent, str(row.options["student"])), row.variant)
    markers = dict(zip(names, cycle(STUDENT_MARKERS), strict=False))
    for row in rows:
        has_teacher = row.options["training"]["soft_weight"] > 0
        is_random = row.options["initialization"] == "random"
        axes.errorbar(
            comparisons.training_minutes(row, results),
            row.comparable_f1,
            yerr=canvas.f1_errors([row]),
            marker=markers[row.parent, str(row.options["student"])],
            color=canvas.GREEN if has_teacher else canvas.YELLOW,
            fillstyle="none" if is_random else "full" if has_teacher else "left",
            **{"capsize": 2, "lw": 1},
        )
    for shape, name in names.items():
        axes.plot([], [], markers[shape], color="0.3", label=name)
    axes.legend(loc="lower right", fontsize=8)
    axes.set_xlim(0, None)
    label = "minutes of training since the baseline (full: teacher, half: labels only, hollow: random start)"
    canvas.label_axes(axes, label, canvas.F1_LABEL)
    return figure


def distillation_bars(results: Results):
    """The F1 points that every distilled student loses, with their interval."""
    rows = comparisons.of_method(results, "distill")[::-1]
    figure, axes = canvas.new_axes(6.4, 0.6 + 0.32 * len(rows))
    axes.axvline(0, color="0.5", lw=1, zorder=0)
    lost, names = [row.f1_drop_points for row in rows], [row.variant for row in rows]
    axes.errorbar(lost, names, xerr=canvas.drop_errors(rows), fmt="o", color=canvas.GREEN, capsize=3)
    canvas.label_axes(axes, f"F1 points lost, 95 % interval; line: {results.environment['baseline']}", grid="x")
    return figure


def sensitivity_map(results: Results, variant: str):
    """Logit error and validation F1 with one group of tensors quantized, for every group and bit width."""
    table = results.by_name[variant].details["sensitivity"]
    losses, errors = comparisons.group_losses(table), {(row["group"], row["bits"]): row["rms_error"] for row in table}
    bits = sorted(losses, reverse=True)
    groups = list(losses[bits[0]])
    error = np.array([[errors[group, b] for b in bits] for group in groups])
    texts = {(i, j): f"{losses[b][group]:+z.1f}" for i, group in enumerate(groups) for j, b in enumerate(bits)}
    figure, axes = canvas.new_axes(5.2, 0.8 + 0.27 * len(groups))
    cells = canvas.heat_map(axes, error, matplotlib.colors.LogNorm(), texts)
    axes.set_xticks(range(len(bits)), [f"{b} bits" for b in bits])
    axes.set_yticks(range(len(groups)), groups)
    canvas.colour_bar(cells, [axes], label="RMS error of the logits")
    axes.set_title("numbers: points of validation F1 lost", fontsize=8)
    return figure


def engine_map(results: Results):
    """Every model in every engine: its speed-up at batch 1, and the F1 points that it gains."""
    cells = timed_engines(results)
    models = list(dict.fromkeys(model for model, _ in cells))
    suffixes = [suffix for suffix in comparisons.ENGINE_SUFFIXES if any((model, suffix) in cells for model in models)]
    speed, texts = np.full((len(models), len(suffixes)), np.nan), {}
    for (model, suffix), row in cells.items():
        place = models.index(model), suffixes.index(suffix)
        speed[place] = row.latency_speedup
        texts[place] = f"{row.latency_speedup:.1f}x\n{-row.f1_drop_points:+z.1f}"
    figure, axes = canvas.new_axes(1.6 + 0.72 * len(suffixes), 0.9 + 0.52 * len(models))
    image = canvas.heat_map(axes, speed, matplotlib.colors.LogNorm(), texts)
    axes.set_xticks(range(len(suffixes)), [engine_label(suffix) for suffix in suffixes], fontsize=7)
    axes.set_yticks(range(len(models)), models)
    ticks = [tick for tick in SPEEDUP_TICKS if np.nanmin(speed) <= tick <= np.nanmax(speed)]
    canvas.colour_bar(image, [axes], label=canvas.FASTER_LABEL, ticks=ticks, format="%g").minorticks_off()
    axes.set_title("above: speed-up over the fine-tuned fp32 PyTorch model; below: F1 points gained", fontsize=8)
    return figure


def timed_engines(results: Results) -> dict[tuple[str, str], PooledRow]:
    return {cell: row for cell, row in comparisons.engine_grid(results).items() if row.latency_speedup}


def engine_label(suffix: str) -> str:
    engine, precision = (suffix or "-torch-fp32").removeprefix("-").split("-")
    return f"{ENGINES.get(engine, engine)}\n{precision}"


def shape_map(results: Results, champion: str):
    """Speed-up of a champion over the baseline by batch and length, for each number of threads."""
    variant = results.champions[champion]["chosen"]
    axis = comparisons.shape_times(variant, results)
    base = comparisons.shape_times(results.environment["baseline"], results)
    own = np.array(axis["milliseconds"])  # [threads, batches, lengths]
    faster = np.array(base["milliseconds"]) / own
    norm = matplotlib.colors.Normalize(faster.min(), faster.max())
    figure, panels = canvas.new_panels(1, len(axis["threads"]), 3.6 * len(axis["threads"]), 2.8)
    for axes, threads, ratios, times in zip(panels[0], axis["threads"], faster, own, strict=True):
        texts = {place: f"{ratios[place]:.1f}x\n{milliseconds(times[place])}" for place in np.ndindex(ratios.shape)}
        image = canvas.heat_map(axes, ratios, norm, texts, size=6.5)
        axes.set_xticks(range(len(axis["lengths"])), axis["lengths"])
        axes.set_yticks(range(len(axis["batches"])), axis["batches"])
        axes.set_xlabel("length in word pieces")
        axes.set_title(f"{threads} thread{'s' if threads > 1 else ''}", fontsize=9)
    panels[0][0].set_ylabel("batch size")
    canvas.colour_bar(image, list(panels[0]), label="speed-up over the baseline")
    figure.suptitle(variant, fontsize=8)
    return figure


def milliseconds(value: float) -> str:
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def step_style(is_less: bool) -> dict:
    """A bar of what a step removes or, hatched, adds; the hatching is visible in grey too."""
    return {"color": canvas.BLUE} if is_less else {"fc": canvas.ORANGE, "ec": "white", "hatch": "////", "lw": 0}


def step_chart(results: Results, champion: str):
    """The effect of each ingredient of a champion on bytes, latency and F1, from the baseline to the whole."""
    rows = comparisons.lineage(champion, results)
    figure, panels = canvas.new_panels(1, 3, 7.4, 0.9 + 0.36 * len(rows), sharey=True)
    cost_steps(panels[0][0], rows, "size_mb", "MB on disk")
    cost_steps(panels[0][1], rows, "latency_ms", "ms at batch 1")
    axes, before = panels[0][2], rows[0]
    for place, row in enumerate(rows):
        lost = row.f1_drop_points - before.f1_drop_points
        axes.barh(-place, lost, left=before.f1_drop_points, **step_style(lost < 0))
        style = {"fmt": "o", "color": "black", "ms": 4, "lw": 1, "capsize": 2}
        axes.errorbar(row.f1_drop_points, -place, xerr=canvas.drop_errors([row]), **style)
        before = row
    axes.axvline(0, color="0.5", lw=0.8, zorder=0)
    axes.set_xlabel("F1 points lost, 95 % interval")
    panels[0][0].set_yticks([-place for place in range(len(rows))], [row.variant for row in rows], fontsize=7)
    figure.suptitle(f"{champion}: blue: removed by the step, hatched orange: added, grey: the total", fontsize=8)
    return figure


def cost_steps(axes, rows, column: str, label: str) -> None:
    """The first and the last row as whole bars, and between them what each step removes or adds."""
    before = 0.0
    for place, row in enumerate(rows):
        value = getattr(row, column)
        text = " not timed" if value is None else f" {value:.3g}"
        value = before if value is None else value  # an untimed step computes what its parent computes
        is_whole = row is rows[0] or row is rows[-1]
        axes.barh(-place, value if is_whole else before - value, left=0 if is_whole else value, color="0.75")
        if place:
            axes.barh(-place, before - value, left=value, **step_style(value < before))
            axes.plot([before, before], [-place, 1 - place], color="0.4", lw=0.6)
        end = max(value, before)
        if column == "latency_ms" and row.latency_ms is not None:
            _, (above,) = errors = canvas.latency_errors([row])
            axes.errorbar(value, -place, xerr=errors, fmt="none", color="black", lw=1, capsize=2)
            end = max(end, value + np.nan_to_num(above))
        axes.text(end, -place, text, va="center", fontsize=7)
        before = value
    axes.set_xlabel(label)
    axes.set_xlim(0, 1.25 * max(getattr(row, column) or 0 for row in rows))


def champions_with_shapes(results: Results) -> list[str]:
    """The champions whose latency was measured over batch, length and threads."""
    return [name for name, facts in results.champions.items() if comparisons.shape_ratios(facts["chosen"], results)]
