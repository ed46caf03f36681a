"""The table of the paper's figures: names, the functions that draw them, and the conditions for drawing them."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from compress.config.profile import Profile
from compress.cpu import cores
from compress.report import canvas, chapter_plots, comparisons, load_plots, plots
from compress.results.reading import Results


def has_values(column: str) -> Callable[[Results], list]:
    """Whether compressed rows have values in the column."""
    return lambda results: [row for row in comparisons.compressed_rows(results) if getattr(row, column) is not None]


def with_sensitivity(results: Results) -> list[str]:
    row = comparisons.sensitivity_row(results)
    return [row.variant] if row else []


# (name, function of the results, condition)
FIGURES = (
    ("overview", plots.overview, plots.timed_models),
    ("f1_vs_size", partial(plots.trade_off, column="size_mb"), has_values("size_mb")),
    ("f1_vs_latency", partial(plots.trade_off, column="latency_ms"), has_values("latency_ms")),
    ("domain_shift", plots.domain_shift, has_values("ood_drop_points")),
    ("both_sizes", plots.both_sizes, comparisons.at_both_sizes),
    ("flips", plots.flip_cloud, has_values("flip_rate")),
    ("reliability", plots.reliability_diagram, lambda results: results.reliability),
    ("seeds", plots.seed_spread, plots.seeded_rows),
    ("sparsity", chapter_plots.sparsity_curve, partial(comparisons.of_method, method="prune")),
    ("codebook", chapter_plots.codebook_curve, partial(comparisons.of_method, method="cluster")),
    ("kd_ablation", chapter_plots.distillation_bars, partial(comparisons.of_method, method="distill")),
)
# (name, function of the results and of a champion or variant, whom to draw it for)
SERIES = (
    ("sensitivity_{}", chapter_plots.sensitivity_map, with_sensitivity),
    ("shapes_{}", chapter_plots.shape_map, chapter_plots.champions_with_shapes),
)
# (name, function of rows, the servers)
SERVING_FIGURES = (
    ("serving", load_plots.load_curves, load_plots.user_servers),
    ("serving_ablation", load_plots.load_curves, load_plots.ablation_servers),
    ("serving_peers", load_plots.load_curves, load_plots.peer_servers),
    ("serving_peers_saturation", load_plots.peer_bars, load_plots.peer_servers),
)


def figures(profile: Profile, results: Results) -> dict[str, Callable]:
    """A function that draws the figure, by name, for every figure that the results have something for."""
    if profile.no_quality:
        return {}
    found = {name: partial(draw, results) for name, draw, condition in FIGURES if condition(results)}
    for name, draw, subjects in SERIES:
        found |= {name.format(subject): partial(draw, results, subject) for subject in subjects(results)}
    for name, draw, choose in SERVING_FIGURES:
        rows = choose(results.serving, profile.serving.ablated) if profile.serving else []
        if rows:
            found[name] = partial(draw, rows, profile.serving.load.p99_ms)
    return found


def draw_all(profile: Profile, results: Results) -> list[str]:
    """Draws every figure into profile.figures, one process per core, and removes what is not in the table."""
    found = figures(profile, results)
    profile.figures.mkdir(parents=True, exist_ok=True)  # also without figures: Make looks for the folder
    with ProcessPoolExecutor(cores()) as pool:
        list(pool.map(partial(draw_one, profile.figures), found, found.values()))
    for path in profile.figures.glob("*"):
        if path.stem not in found:
            path.unlink()
    return list(found)


def draw_one(folder: Path, name: str, draw: Callable) -> None:
    canvas.save_figure(folder, name, draw())
