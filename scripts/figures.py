"""Results to pictures: F1 against size and against latency, with 95 % intervals.

Reads results/<profile>/; writes figures/<profile>/<name>.png (for the screen) and .pdf (for print).
Example: python scripts/figures.py --profile minilm
"""

import argparse

from compress.cli import add_profile, main_guard

MARKERS = "osD^vP*X<>"
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito (2008)


def scatter(rows, column: str, label: str, log: bool):
    """One point per variant of the first seed, F1 with its interval over `column`."""
    import matplotlib.pyplot as plt
    from matplotlib import ticker

    rows = [row for row in rows if row[column] is not None]
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for i, row in enumerate(rows):
        low, high = row["f1_test"] - row["f1_ci_low"], row["f1_ci_high"] - row["f1_test"]
        axes.errorbar(
            row[column],
            row["f1_test"],
            yerr=[[max(low, 0)], [max(high, 0)]],
            marker=MARKERS[i % len(MARKERS)],
            color=COLOURS[i % len(COLOURS)],
            linestyle="none",
            capsize=3,
            label=row["variant"],
        )
    values = [row[column] for row in rows]
    if log:
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 2, max(values) * 2)  # readable also when all are of one size
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    else:
        axes.set_xlim(0, max(values) * 1.2)
    axes.set_xlabel(label)
    axes.set_ylabel("F1 on the test set, 95 % interval")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def main(args: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from compress.files import atomic_path
    from compress.profile import load_profile
    from compress.results import read_results

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42})
    profile = load_profile(args.profile)
    rows, _, _ = read_results(profile)
    first = rows[0]["seed"]
    rows = [row for row in rows if row["seed"] == first and row["f1_test"] is not None]
    figures = {
        "f1_vs_size": scatter(rows, "size_mb", "size on disk, MB (log scale)", log=True),
        "f1_vs_latency": scatter(rows, "latency_ms_p50", "latency at batch 1, ms (median)", log=False),
    }
    for name, figure in figures.items():
        for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
            with atomic_path(profile.figures / f"{name}.{kind}") as temporary:
                figure.savefig(temporary, format=kind, dpi=160, metadata=metadata)
    print(f"{profile.figures}: {len(figures)} figures")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_profile(parser)
    main_guard(main, parser)
