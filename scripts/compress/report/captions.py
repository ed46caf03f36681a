"""Sentences with generated numbers: the abstract's, and the captions of figures, which begin with what is seen."""

from itertools import pairwise
from statistics import mean, median

from compress.report.tables import number, span, sustained, too_much
from compress.results.reading import by_variant, is_beside

POINTS = 1.0  # F1 points that a variant may lose and still count as near the baseline


class Captions(dict[str, str]):
    """Captions by the figure's name; where the rows that one compares are not there, the name itself."""

    def __missing__(self, name: str) -> str:
        return name.replace("_", " ").capitalize() + "."


def captions(profile, results, rows) -> Captions:
    """The captions of a profile's figures from these rows of results.

    The figures of compress.questions have theirs in report/questions.md.j2, beside the question.
    """
    rows = [row for row in rows if row["f1_test"] is not None]
    if not rows:
        return Captions()
    by_name = {row["variant"]: row for row in rows}
    found = {
        "f1_vs_size": best_near(rows, "size_ratio", "smallest", "size_mb", "MB", "smaller")
        + f" The line joins the variants that none beats; champions are ringed.{hidden(rows, 'size_mb')}",
        "f1_vs_latency": best_near(rows, "latency_speedup", "fastest", "latency_ms", "ms", "faster")
        + f" What is only smaller stays at the right.{hidden(rows, 'latency_ms')}",
        "sparsity": sparsity(rows, results.methods),
        "codebook": codebook(rows, results.methods),
        "students": students(by_name, by_name[profile.baseline]),
        "kd_ablation": controls(by_name),
        "grid": grid(by_name, profile.baseline),
        "seeds": seeds(results.seeds, profile.baseline),
    }
    for name, method in results.methods.items():
        if "sensitivity" in method["details"]:
            found[f"sensitivity_{name}"] = sensitivity(method["details"]["sensitivity"])
        if method["options"]["method"] == "champion" and name in by_name:
            found[f"ablation_{name}"] = ablation(name, results.methods, by_name)
            found[f"shapes_{name}"] = shapes(name, results.methods, profile.baseline)
    if results.serving:
        found |= serving(profile, results.serving)
    return Captions({name: text for name, text in found.items() if text})


def findings(results, rows, told: dict[str, str]) -> str:
    """What the abstract says of the compressed models; empty where no champion was chosen."""
    rows = [row for row in rows if row["f1_test"] is not None]
    by_name = {row["variant"]: row for row in rows}
    champions = []
    for row in (row for row in rows if row["method"] == "champion"):
        # Twice measured: when it was chosen, and as the champion.
        chosen = by_name[results.methods[row["variant"]]["details"]["chosen"]]
        faster = [number(of, 1) for of in sorted({row["latency_speedup"], chosen["latency_speedup"]} - {None})]
        loses = span(row, "f1_drop_points", "f1_drop_ci_low", "f1_drop_ci_high", 1)
        champions.append(
            f"`{row['variant']}` is {number(row['size_ratio'], 1)} times smaller and "
            f"{' to '.join(dict.fromkeys(faster))} times faster and loses {loses} F1 points"
        )
    if not champions:
        return ""
    others = [row for row in rows if row["method"] != "champion"]  # a champion is another row again
    tested = [row for row in others if row["trained"] == "True" and row["mcnemar_p_holm"] is not None]
    sentences = [
        f"Chosen on validation data: {'; '.join(champions)}. Brackets are 95 % intervals, each for itself.",
        f"Of {len(tested)} trained variants, a network counted once per engine, {len(worse(tested))} are significantly "
        "worse than the fine-tuned model (exact McNemar test on right and wrong answers, Holm's correction for all of "
        "them).",
        *([f"As an HTTP service {told['serving']}"] if "serving" in told else []),
    ]
    return "\n".join(sentences)


def lost(row) -> str:
    return number(row["f1_drop_points"], 1)


def near(rows) -> list[dict]:
    """The trained rows that lose at most POINTS, without champions, which are copies of others."""
    trained = [row for row in rows if row["trained"] == "True" and row["method"] != "champion"]
    return [row for row in trained if row["f1_drop_points"] <= POINTS]


def worse(rows) -> list[dict]:
    """The rows that are significantly worse than the baseline: p, adjusted for all rows, is below 0.05."""
    tested = [row for row in rows if row["mcnemar_p_holm"] is not None]
    return [row for row in tested if row["mcnemar_p_holm"] < 0.05 and row["f1_drop_points"] > 0]


def best_near(rows, ratio: str, which: str, column: str, unit: str, comparative: str) -> str:
    """The largest ratio to the baseline among the rows near it."""
    row = max((row for row in near(rows) if row[ratio] is not None), key=lambda row: row[ratio])
    return (
        f"Of the variants that lose at most {POINTS:g} F1 point `{row['variant']}` is the {which}: "
        f"{number(row[column], 2)} {unit}, {number(row[ratio], 1)} times {comparative}, "
        f"{span(row, 'f1_drop_points', 'f1_drop_ci_low', 'f1_drop_ci_high', 1)} points lost."
    )


def hidden(rows, column: str) -> str:
    """A sentence on the rows that a figure of F1 over this cost has no room for."""
    from figures import lowest_shown

    rows = [row for row in rows if row[column] is not None]
    lowest = lowest_shown(rows)
    below = sum(row["f1_test"] < lowest for row in rows)
    return f" {below} lie below the axis." if below else ""


def sparsity(rows, methods) -> str:
    """The most zeros, with training and without."""
    of = [(methods[row["variant"]]["options"], row) for row in rows if row["method"] == "prune"]
    of = [(options, row) for options, row in of if options["pattern"] == "unstructured"]
    most = max((options["sparsity"] for options, _ in of), default=None)
    trained, plain = (
        [row for options, row in of if options["sparsity"] == most and (options["training"] is not None) == wanted]
        for wanted in (True, False)
    )
    if not trained or not plain:
        return ""
    best = min(trained, key=lambda row: row["f1_drop_points"])
    return (
        f"With {100 * most:.0f} % zeros `{best['variant']}` loses {lost(best)} F1 points after training, "
        f"`{plain[0]['variant']}` without any {lost(plain[0])}. Levels are trained for unlike numbers of epochs (the "
        "table of trainings), which bends the lines. Right: zeros make nothing faster, what is removed does."
    )


def codebook(rows, methods) -> str:
    """The fewest values that were tried with trained centroids and without."""
    pairs: dict[int, dict[bool, dict]] = {}
    for row in rows:
        options = methods[row["variant"]]["options"]
        if row["method"] == "cluster" and not options["rate"]:
            pairs.setdefault(options["k"], {})[options["training"] is not None] = row
    both = {k: pair for k, pair in pairs.items() if len(pair) == 2}
    if not both:
        return ""
    k = min(both)
    return (
        f"With {k} distinct values per matrix k-means alone loses {lost(both[k][False])} F1 points, trained centroids "
        f"lose {lost(both[k][True])}. The sizes are those of k-means alone."
    )


def with_controls(by_name) -> list[tuple[dict, dict, dict]]:
    """(student, its control on labels alone, its control from a random start) for each student that has both."""
    names = [name for name in by_name if {f"{name}-labels", f"{name}-scratch"} <= set(by_name)]
    return [(by_name[name], by_name[f"{name}-labels"], by_name[f"{name}-scratch"]) for name in names]


def students(by_name, base) -> str:
    from figures import minutes_from

    if not (several := with_controls(by_name)):
        return ""
    student, labels, scratch = several[0]
    minutes = [number(minutes_from(base, row, by_name), 1) for row in several[0]]
    return (
        f"`{student['variant']}` loses {lost(student)} F1 points after {minutes[0]} minutes of training, on labels "
        f"alone {lost(labels)} after {minutes[1]}, from a random start {lost(scratch)} after {minutes[2]}."
    )


def controls(by_name) -> str:
    if not (several := with_controls(by_name)):
        return ""
    means = [number(mean(row["f1_drop_points"] for row in kind), 1) for kind in zip(*several, strict=True)]
    return (
        f"{len(several)} students lose {means[0]} F1 points as their mean, on labels alone {means[1]}, from a random "
        f"start {means[2]}. With them the losses and transfer sets, one changed at a time; bars are intervals."
    )


def grid(by_name, baseline: str) -> str:
    from figures import grid_cells

    cells = [(model, row) for (model, _), row in grid_cells(by_name, baseline).items() if row["latency_speedup"]]
    if not cells:
        return ""
    fastest = max((row for _, row in cells), key=lambda row: row["latency_speedup"])
    own = max((row for model, row in cells if model == baseline), key=lambda row: row["latency_speedup"])
    return (
        f"The fastest cell is `{fastest['variant']}`, {number(fastest['latency_speedup'], 1)} times faster with "
        f"{lost(fastest)} F1 points lost; the baseline's own network reaches {number(own['latency_speedup'], 1)} times "
        f"in `{own['variant']}`."
    )


def sensitivity(table) -> str:
    drops: dict[int, dict[str, float]] = {}
    for row in table[1:]:
        drops.setdefault(row["bits"], {})[row["group"]] = 100 * (table[0]["f1"] - row["f1"])
    few, many = min(drops), max(drops)
    worst = max(drops[few], key=drops[few].get)
    return (
        f"At {few} bits `{worst}` alone loses most, {number(drops[few][worst], 1)} points of validation F1; at {many} "
        f"bits no group loses more than {number(max(drops[many].values()), 1)}."
    )


def ablation(name: str, methods, by_name) -> str:
    """The steps from the baseline to a champion that bring most."""
    from figures import lineage

    steps = lineage(name, methods, by_name)
    found: dict[tuple[str, str], list[str]] = {}
    for column, what in (("latency_ms", "faster"), ("size_mb", "smaller")):
        measured = [row for row in steps if row[column] is not None]
        ratios = {(a["variant"], b["variant"]): a[column] / b[column] for a, b in pairwise(measured)}
        if ratios:
            most = max(ratios, key=ratios.get)
            found.setdefault(most, []).append(f"{number(ratios[most], 1)} times {what}")
    told = ", ".join(f"`{a}` to `{b}` ({' and '.join(brought)})" for (a, b), brought in found.items())
    return f"What adds most to `{name}`: {told}." if found else ""


def shapes(name: str, methods, baseline: str) -> str:
    """Where the lead over the baseline is least and largest."""
    import numpy as np

    slow, fast = (methods[which]["measured"].get("shapes") for which in (baseline, name))
    if not slow or not fast:
        return ""
    ratio = np.array(slow["milliseconds"]) / np.array(fast["milliseconds"])

    def place(flat: int) -> str:
        t, b, n = np.unravel_index(flat, ratio.shape)
        threads = fast["threads"][t]
        return (
            f"{ratio[t, b, n]:.1f} times (batch {fast['batches'][b]}, {fast['lengths'][n]} pieces, {threads} "
            f"thread{'s' if threads > 1 else ''})"
        )

    return f"`{name}` is faster by {place(ratio.argmin())} to {place(ratio.argmax())}."


def seeds(over, baseline: str) -> str:
    deviations = [row["drop_std"] for row in over if row["variant"] != baseline]
    if not deviations:
        return ""
    return (
        f"From seed to seed the points lost have a standard deviation of {number(median(deviations), 2)}, the median "
        f"of {len(deviations)} variants. Rings are seeds, bars their mean and its interval over test sentences; shown "
        "are the variants that no smaller one beats, and the champions."
    )


def lead(of_server, best: str, plain: str, p99_ms: float) -> str:
    """How many times the rate that `plain` sustains, and between which bounds, since rates are tried in steps."""
    (low, high), (plain_low, plain_high) = (
        (sustained(of_server[name], p99_ms), too_much(of_server[name], p99_ms)) for name in (best, plain)
    )
    times = f"{number(low / plain_low, 1)} times"
    if high is None or plain_high is None:
        return times
    return f"{times} ({number(low / plain_high, 1)} to {number(high / plain_low, 1)}: rates are tried in steps)"


def serving(profile, rows) -> dict[str, str]:
    ablated = profile.serving.ablated
    saturated = {row["variant"]: row["achieved_rps"] for row in rows if row["layout"] == "saturation"}
    of_server = by_variant(rows)
    limit = profile.serving.load.p99_ms
    kept_up = {name: sustained(of, limit) for name, of in of_server.items()}
    found = {}
    own = [name for name in profile.serving.variants if kept_up.get(name)]
    if len(own) > 1 and profile.baseline in own:
        best, plain = max(own, key=kept_up.get), profile.baseline
        found["serving"] = (
            f"`{best}` sustains {number(kept_up[best], 0)} requests per second, "
            f"{lead(of_server, best, plain, limit)} what the fp32 PyTorch model does under the same p99; at saturation "
            f"it is {number(saturated[best] / saturated[plain], 1)} times."
        )
    changed = {name: rate for name, rate in saturated.items() if name.startswith(f"{ablated}-") and not is_beside(name)}
    if ablated in saturated and changed:
        worst = min(changed, key=changed.get)
        found["serving_ablation"] = (
            f"`{worst.removeprefix(ablated + '-')}` costs most: saturation falls from {number(saturated[ablated], 0)} "
            f"to {number(changed[worst], 0)} requests per second."
        )
    peers = {
        name: max(row["achieved_rps"] for row in of if row["layout"].startswith(("saturation", "sweep-")))
        for name, of in of_server.items()
        if name.startswith("peer-") and name in saturated and not name.endswith("five-services")
    }
    ours = next((name for name in saturated if is_beside(name) and not name.startswith("peer-")), None)
    if ours and peers:
        best = max(peers, key=peers.get)
        found["serving_peers_saturation"] = (
            f"Ours answers {number(saturated[ours], 0)} requests per second at saturation, `{best}` in turns with it "
            f"{number(saturated[best], 0)} and at most, there or in its sweep, {number(peers[best], 0)}: "
            f"{number(saturated[ours] / saturated[best], 2)} and {number(saturated[ours] / peers[best], 2)} times."
        )
        over = {r["variant"]: r["goodput_rps"] for r in rows if r["share"] == 3 and r["goodput_rps"] is not None}
        late = {name: over[name] for name in peers if name in over}
        if ours in over and late:
            best = max(late, key=late.get)
            found["serving_peers"] = (
                f"Offered three times what saturates it, ours answers {number(over[ours], 0)} requests per second in "
                f"time, the best peer, `{best}`, {number(late[best], 0)}."
            )
    return found
