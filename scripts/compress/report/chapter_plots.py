"""Figures of the chapters: sparsity, codebooks, students, sensitivity and the shapes of inputs."""

from itertools import cycle

import matplotlib
import numpy as np
from compress.report import canvas, comparisons
from compress.results.reading import Results


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


def distillation_bars(results: Results):
    """The F1 points that every distilled student loses, with their interval; hollow if it has few seeds."""
    rows = comparisons.of_method(results, "distill")[::-1]
    seeds = comparisons.baseline_row(results).seeds
    figure, axes = canvas.new_axes(6.4, 0.6 + 0.32 * len(rows))
    axes.axvline(0, color="0.5", lw=1, zorder=0)
    lost, names = [row.f1_drop_points for row in rows], [row.variant for row in rows]
    axes.errorbar(lost, names, xerr=canvas.drop_errors(rows), fmt="o", color=canvas.GREEN, capsize=3)
    fewer = [row for row in rows if row.seeds < seeds]
    hollow = {"ls": "", "marker": "o", "color": canvas.GREEN, "mfc": "white", "zorder": 3}
    axes.plot([row.f1_drop_points for row in fewer], [row.variant for row in fewer], **hollow)
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


def champions_with_shapes(results: Results) -> list[str]:
    """The champions whose latency was measured over batch, length and threads."""
    return [name for name, facts in results.champions.items() if comparisons.shape_ratios(facts["chosen"], results)]
