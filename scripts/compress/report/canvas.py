"""What all figures share: colours, axes, error bars, heat maps, and saving without a date."""

import math
from pathlib import Path

import matplotlib
from compress.files import atomic_path
from compress.report.comparisons import baseline_row
from compress.report.families import ENGINE_ALONE, MIX, by_family, family_of
from compress.results.reading import Results
from matplotlib import ticker
from matplotlib.figure import Figure

STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42}
STYLE |= {"svg.fonttype": "none", "svg.hashsalt": "compress"}
matplotlib.rcParams.update(STYLE)

BLUE, ORANGE, GREEN, PINK, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
# Colours for colour-blind readers (Okabe and Ito, 2008); the markers tell the families apart in grey.
FAMILY_STYLES = {f"int{bits}": (BLUE, marker) for bits, marker in zip(range(8, 1, -1), "sph<v>d", strict=True)}
FAMILY_STYLES |= {
    "ternary": (BLUE, "*"),
    "16-bit floats": (BLUE, "x"),
    "clustering": (ORANGE, "D"),
    "pruning": (GREEN, "^"),
    "low rank": (GREEN, "+"),
    "student": (PINK, "o"),
    "shallow": ("black", "o"),
    MIX: (YELLOW, "P"),
    ENGINE_ALONE: ("0.45", "X"),
}
LINE_STYLES = ((BLUE, "s"), (ORANGE, "D"), (GREEN, "^"), (PINK, "v"), (YELLOW, "P"), (BLUE, "v"), (ORANGE, "P"))
LOSSES = matplotlib.colormaps["cividis_r"]  # losses are dark
F1_LABEL = "test F1, paired 95 % interval"


def new_axes(width: float = 6.4, height: float = 3.8):
    """(figure, axes) of a figure with one panel; width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def new_panels(rows: int, columns: int, width: float, height: float, **options):
    """(figure, axes [rows, columns]); the options are those of Figure.subplots."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def error_lengths(points) -> list[list[float]]:
    """Lengths [below, above] of the error bars of points (value, low, high); no bar for a point without an interval."""
    known = [point if None not in point else (math.nan,) * 3 for point in points]
    return [[max(value - low, 0) for value, low, _ in known], [max(high - value, 0) for value, _, high in known]]


def drop_errors(rows) -> list[list[float]]:
    return error_lengths((row.f1_drop_points, row.f1_drop_ci_low, row.f1_drop_ci_high) for row in rows)


def domain_errors(rows) -> list[list[float]]:
    return error_lengths((row.ood_drop_points, row.ood_drop_low, row.ood_drop_high) for row in rows)


def f1_errors(rows) -> list[list[float]]:
    """Lengths of F1's error bars, from the paired interval of the drop."""
    above, below = drop_errors(rows)
    return [[length / 100 for length in below], [length / 100 for length in above]]


def speedup_errors(rows) -> list[list[float]]:
    return error_lengths((row.latency_speedup, row.latency_speedup_low, row.latency_speedup_high) for row in rows)


def latency_errors(rows) -> list[list[float]]:
    """Lengths of the error bars of latency_ms, from the interval of the speed-up."""

    def milliseconds(row, speedup: float | None) -> float | None:
        return speedup and row.latency_ms * row.latency_speedup / speedup

    ends = [(milliseconds(row, row.latency_speedup_high), milliseconds(row, row.latency_speedup_low)) for row in rows]
    return error_lengths((row.latency_ms, *of_row) for row, of_row in zip(rows, ends, strict=True))


def label_axes(axes, x: str, y: str = "", grid: str = "both") -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3, axis=grid)


def log_scale(axes, names: str) -> None:
    """Log scales, with labels 1, 2 and 5 of each decade as plain numbers; the names are "x" or "xy"."""
    for name in names:
        axes.set(**{f"{name}scale": "log"})
        axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.set_minor_locator(ticker.NullLocator())


def baseline_line(axes, results: Results) -> None:
    base = baseline_row(results)
    axes.axhline(base.f1_test, color="0.5", lw=1, zorder=0, label=base.variant)


def family_legend(axes, rows, results: Results) -> None:
    """A legend below the axes: what is labelled, and the families of the rows."""
    for family in by_family(rows, results):
        colour, marker = FAMILY_STYLES[family]
        axes.plot([], [], marker, color=colour, ms=5, label=family)
    entries = axes.get_legend_handles_labels()
    axes.figure.legend(*entries, loc="outside lower center", ncols=5, fontsize=8, frameon=False)


def family_points(axes, points, results: Results, **options) -> None:
    """Points (row, x, y, lengths of its bars in x or None, those in y) in the colour and marker of their family."""
    for row, x, y, xerr, yerr in points:
        colour, marker = FAMILY_STYLES[family_of(row.variant, results)]
        style = {"fmt": marker, "color": colour, "ms": 5, "lw": 1, "alpha": 0.7} | options
        axes.errorbar(x, y, xerr=xerr, yerr=yerr, **style)


def ring(axes, x, y, **options) -> None:
    axes.plot(x, y, "o", color="black", mfc="none", ms=11, **options)


def heat_map(axes, values, norm, texts, size: float = 7):
    """Cells [rows, columns] with a text in each, the first row at the top; vectors, where imshow would draw pixels."""
    rows, columns = values.shape
    edges = [[i - 0.5 for i in range(cells + 1)] for cells in (columns, rows)]
    cells = axes.pcolormesh(*edges, values, cmap="cividis", norm=norm, edgecolors="face")
    axes.set_ylim(rows - 0.5, -0.5)
    for (i, j), text in texts.items():
        colour = "white" if cells.norm(values[i, j]) < 0.5 else "black"
        axes.text(j, i, text, ha="center", va="center", fontsize=size, color=colour)
    return cells


def colour_bar(cells, axes, **options):
    """The scale of a heat map, as vectors too."""
    bar = axes[0].figure.colorbar(cells, ax=axes, **options)
    bar.solids.set(rasterized=False, edgecolor="face")
    return bar


def save_figure(folder: Path, name: str, figure: Figure) -> None:
    """Writes <name>.png for Markdown, .svg for HTML and .pdf for print, without a date: equal results, equal bytes."""
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
        with atomic_path(folder / f"{name}.{kind}") as temporary:
            figure.savefig(temporary, format=kind, dpi=160, metadata=metadata)
