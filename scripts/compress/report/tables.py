"""The report's tables as Markdown, from the rows of results/<profile>/."""

from itertools import chain

from compress.results.reading import by_variant

TIMES = ("ms p50", "ms p95", "faster", "per s", "faster")  # columns of the cost tables


def number(value, digits: int) -> str:
    return "" if value is None else f"{value:z.{digits}f}"  # z: no "-0.0"


def span(row, value: str, low: str, high: str, digits: int) -> str:
    if row[value] is None:
        return ""
    return f"{row[value]:z.{digits}f} [{row[low]:z.{digits}f}, {row[high]:z.{digits}f}]"


def p_value(row) -> str:
    return "" if row["mcnemar_p_holm"] is None else f"{row['mcnemar_p_holm']:.2g}"


def table(header: list[str], body: list[list[str]]) -> str:
    """A Markdown table; columns after the first are aligned to the right, their dashes give pandoc their widths."""
    widths = [
        max(3, *map(len, column)) + 4 for column in zip(header, *body, strict=True)
    ]  # 4: the letters' widths differ
    dashes = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, dashes, *body])


def headline(rows, course) -> str:
    """The rows in the course's columns, and the course's own rows below them."""
    header = ["Name", "Device", "Training", "F1_test", "Size(mb)", "Time for 1 predict(s)"]
    ours = [
        [
            f"**{row['variant']}**",
            row["device"],
            "yes" if row["trained"] == "True" else "no",
            number(row["f1_test"], 3),
            number(row["size_mb"], 3),
            number(row["latency_ms_p50"] and row["latency_ms_p50"] / 1e3, 4),
        ]
        for row in rows
    ]
    theirs = [
        [f"course: {c['name']}", c["device"], c["trained"], c["f1_test"], c["size_mb"], c["seconds_per_prediction"]]
        for c in course
    ]
    return table(header, ours + theirs)


def quality_table(rows) -> str:
    header = ["Variant", "F1", "Drop", "p (Holm)", "Accuracy", "ECE", "Flips", "Batch flips"]
    body = [
        [
            row["variant"],
            span(row, "f1_test", "f1_ci_low", "f1_ci_high", 3),
            span(row, "f1_drop_points", "f1_drop_ci_low", "f1_drop_ci_high", 1),
            p_value(row),
            number(row["accuracy_test"], 3),
            number(row["ece_test"], 3),
            number(row["flip_rate"], 3),
            number(row["batch_flip_rate"], 4),
        ]
        for row in rows
    ]
    return table(header, body)


def training_table(rows, methods) -> str:
    """What the trainings of some rows differ in; empty if none was trained.

    alpha is the teacher's share of the loss, T the temperature; a student of alpha 0 learns from labels alone. An empty
    dropout is the model's own.
    """
    header = ["Variant", "Starts from", "Texts", "Epochs", "Batch", "Learning rate", "alpha", "T", "Dropout", "Frozen"]
    body = []
    for row in rows:
        options = methods[row["variant"]]["options"]
        for name in ("adaptation", "training"):  # deep compression trains the weights first, then codebooks
            if not (training := options.get(name)):
                continue
            start = "random weights" if options.get("initialization") == "random" else options["parent"]
            if name == "training" and options.get("adaptation"):
                start = "its clustered weights"
            texts = " + ".join(options.get("transfer", ["train"]))
            cells = [f"{training[name]:g}" for name in ("epochs", "batch_size", "learning_rate", "soft_weight")]
            cells.append(f"{training['temperature']:g}" if training["soft_weight"] else "")
            cells.append("" if training["dropout"] is None else f"{training['dropout']:g}")
            cells.append("embeddings" if training["freeze_embeddings"] else "")
            body.append([row["variant"], start, texts, *cells])
    return table(header, body) if body else ""


def by_seed(rows, every, over) -> str:
    """Sentences on what differs much from seed to seed: bytes, of which the tables have the first seed's, and F1."""
    sizes, uneven = [], []
    for name, of in by_variant(row for row in every if row["variant"] in {row["variant"] for row in rows}).items():
        found = [row["size_mb"] for row in of if row["size_mb"] is not None]
        if found and max(found) > 1.02 * min(found):
            sizes.append(f"`{name}` {', '.join(number(size, 2) for size in found)} MB")
        if name in over and over[name]["f1_max"] - over[name]["f1_min"] > 0.05:
            f1 = [number(row["f1_test"], 3) for row in of]
            uneven.append(f"`{name}` {', '.join(f1)}")
    told = [f"Bytes differ from seed to seed: {'; '.join(sizes)}."] if sizes else []
    told += [f"F1 differs by more than 5 points from seed to seed: {'; '.join(uneven)}."] if uneven else []
    return "\n".join(told)


def domain_table(rows) -> str:
    from compress.data.prepare import OUT_OF_DOMAIN

    body = [[row["variant"], *(number(row[f"f1_{d}"], 3) for d in ("test", *OUT_OF_DOMAIN))] for row in rows]
    return table(["Variant", "Movies", "Amazon", "Tweets", "NYT"], body)


def time_cells(row) -> list[str]:
    """The cells under TIMES."""
    latency = ("latency_ms_p50", "latency_ms_p95", "latency_speedup")
    throughput = [number(row["throughput_per_s"], 0), number(row["throughput_speedup"], 2)]
    return [*(number(row[name], 2) for name in latency), *throughput]


def cost_table(rows, methods) -> str:
    header = ["Variant", "MB", "smaller", *TIMES, "RSS MB", "Train s", "All s"]
    body = [
        [
            row["variant"],
            number(row["size_mb"], 2),
            number(row["size_ratio"], 1),
            *time_cells(row),
            number(row["peak_rss_mb"], 0),
            number(row["train_seconds"], 0),
            number(methods[row["variant"]]["seconds"], 0),
        ]
        for row in rows
    ]
    return table(header, body)


def seed_table(rows) -> str:
    """Mean and spread over training seeds, and the comparison pooled over them, from seeds.csv; empty for no rows."""
    header = ["Variant", "Seeds", "Mean F1", "sd", "Least", "Largest", "Mean drop", "sd of drop", "p (Holm)"]
    body = []
    for row in rows:
        f1 = [number(row[column], 4) for column in ("f1_mean", "f1_std", "f1_min", "f1_max")]
        drop = span(row, "drop_mean", "drop_ci_low", "drop_ci_high", 2)
        cells = [number(row["drop_std"], 2), p_value(row)]
        body.append([row["variant"], number(row["seeds"], 0), *f1, drop, *cells])
    return table(header, body) if body else ""


def sensitivity_table(methods) -> str:
    """Bits chosen per group, and what 8 and 4 bits of that group alone do to validation F1 and to the logits."""
    found = [method["details"] for method in methods.values() if "sensitivity" in method["details"]]
    if not found:
        return ""
    rows, chosen = found[0]["sensitivity"], found[0]["bits"]
    cells = {(row["group"], row["bits"]): row for row in rows}
    body = []
    for group, bits in chosen.items():
        eight, four = cells[group, 8], cells[group, 4]
        points = [f"{100 * (rows[0]['f1'] - cell['f1']):.1f}" for cell in (eight, four)]
        errors = [f"{cell['rms_error']:.3f}" for cell in (eight, four)]
        body.append([group, *points, *errors, f"{four['bytes_saved'] / 1e6:.2f}", str(bits)])
    header = ["Group", "points lost, 8 bits", "4 bits", "rms logit error, 8 bits", "4 bits", "MB saved by 4", "chosen"]
    return table(header, body)


def engine_table(rows, methods) -> str:
    """What each engine's file holds and really runs, and how far its answers lie from PyTorch's."""
    header = [
        "Variant",
        "Runs in",
        "Integer products",
        "Float",
        "Fused attention",
        "Weights",
        "Logit error",
        "Same label",
    ]
    body = []
    for row in rows:
        details = methods[row["variant"]]["details"]
        if "integer_products" not in details:
            continue
        held = {kind: size for kind, size in details["initializer_bytes"].items() if size > 1e5}
        largest = details.get("largest_logit_difference")
        body.append(
            [
                row["variant"],
                row["precision"],
                *(str(details[name]) for name in ("integer_products", "float_products", "fused_attention")),
                ", ".join(f"{kind} {size / 1e6:.1f}" for kind, size in held.items()),
                "" if largest is None else f"{largest:.2g}",
                number(details.get("label_agreement"), 2),
            ]
        )
    return table(header, body)


def cold_table(rows, methods) -> str:
    """What a user meets on the first request, and whenever a sentence has a length that was not there before."""
    from compress.engines.ov import PROPERTIES

    header = ["Variant", "load ms", "first call ms", "new length ms", "same length ms", "set to"]
    body = []
    for row in rows:
        method = methods[row["variant"]]
        properties = method["details"].get("properties", {})
        measured = method["measured"]
        body.append(
            [
                row["variant"],
                number(measured.get("load_ms"), 0),
                *(number(measured.get(name), 2) for name in ("first_ms", "new_length_ms", "same_length_ms")),
                ", ".join(properties[name].lower() for name in PROPERTIES if name in properties),
            ]
        )
    return table(header, body)


def twin_table(by_name, methods) -> str:
    """Optimum's variants beside the same thing done without it."""
    shown = (
        ("f1_test", "F1", 3),
        ("size_mb", "MB", 2),
        ("latency_speedup", "faster", 2),
        ("throughput_speedup", "batched", 2),
        ("peak_rss_mb", "RSS MB", 0),
    )
    header = ["Optimum", "without it", *(title for _, name, _ in shown for title in (name, "without"))]
    body = []
    for name, method in methods.items():
        twin = by_name.get(method["options"].get("twin"))
        if twin is None:
            continue
        row = by_name[name]
        numbers = [number(side[column], digits) for column, _, digits in shown for side in (row, twin)]
        body.append([name, twin["variant"], *numbers])
    return table(header, body)


def twin_facts(by_name, methods, noise: float | None, unsure: list[str]) -> str:
    """What the pairs of twin_table() differ in: products, speed beyond the ratio that is noise, memory.

    Of `unsure` backends no noise is known.
    """
    unlike, apart, memory = [], [], []
    for name, method in methods.items():
        twin = method["options"].get("twin")
        if name not in by_name or twin not in by_name:
            continue
        row, other = by_name[name], by_name[twin]
        here, there = (methods[side]["details"] for side in (name, twin))
        counts = ("integer_products", "float_products")
        if "integer_products" in here and [here[c] for c in counts] != [there.get(c) for c in counts]:
            gained = "" if row["f1_test"] is None else f" ({100 * (row['f1_test'] - other['f1_test']):+z.1f} F1 points)"
            unlike.append(
                f"`{name}` multiplies {here['integer_products']} products as integers and {here['float_products']} as "
                f"floats, `{twin}` {there['integer_products']} and {there['float_products']}{gained}"
            )
        if noise and row["backend"] not in unsure and row["latency_speedup"] and other["latency_speedup"]:
            ratio = row["latency_speedup"] / other["latency_speedup"]
            if max(ratio, 1 / ratio) > noise:
                apart.append(f"`{name}` {ratio:.2f}")
        if method["options"]["method"] == "optimum-intel" and row["peak_rss_mb"] and other["peak_rss_mb"]:
            memory.append(row["peak_rss_mb"] / other["peak_rss_mb"])
    told = []
    if unlike:
        told.append(
            f"Not quite the same thing: {'; '.join(unlike)}. What differs are attention's products of two activations."
        )
    if noise:
        told.append(
            f"Two measurements of one file lie up to {noise:.2f} times apart. Optimum's speed at batch 1 over its "
            f"twin's where they are further apart: {', '.join(apart) or 'none'}."
            + (f" (No file was measured twice in: {', '.join(unsure)}.)" if unsure else "")
        )
    if memory:
        told.append(
            f"Files of optimum-intel peak at {min(memory):.2f} to {max(memory):.2f} times the memory of their twins."
        )
    return "\n".join(told)


def champion_table(rows, methods) -> str:
    header = [
        "Champion",
        "is",
        "points lost, validation",
        "test",
        "smaller",
        "faster",
        "faster, batched",
        "MB",
        "ms",
        "within tolerance, of",
    ]
    columns = ("size_ratio", "latency_speedup", "throughput_speedup", "size_mb", "latency_ms_p50")
    body = []
    for row in rows:
        if row["method"] != "champion":
            continue
        details = methods[row["variant"]]["details"]
        body.append(
            [
                row["variant"],
                details["chosen"],
                f"{number(details['validation_drop_points'], 2)} ± {number(details['validation_standard_error'], 2)}",
                span(row, "f1_drop_points", "f1_drop_ci_low", "f1_drop_ci_high", 2),
                *(number(row[column], 2) for column in columns),
                f"{details['within_tolerance']} of {details['candidates']}",
            ]
        )
    return table(header, body)


def services_table(rows) -> str:
    header = [
        "Service",
        "Classes",
        "Trained on",
        "Tested on",
        "F1",
        "Accuracy",
        "Largest class",
        "Batch flips",
        "MB",
        "Train s",
    ]
    body = [
        [
            row["variant"],
            *(number(row[name], 0) for name in ("classes", "train_sentences", "test_sentences")),
            *(number(row[name], 3) for name in ("f1_test", "accuracy_test", "largest_class", "batch_flip_rate")),
            number(row["size_mb"], 2),
            number(row["train_seconds"], 0),
        ]
        for row in rows
    ]
    return table(header, body)


def sustained(rows, p99_ms: float) -> float | None:
    """The largest offered rate with p99 within the limit and at least 99 % answered (MLPerf's server rule for BERT)."""
    return max(
        (
            row["offered_rps"]
            for row in rows
            if row["layout"] == "open-loop"
            and row["latency_ms_p99"] is not None
            and row["latency_ms_p99"] <= p99_ms
            and row["shed_fraction"] + row["error_fraction"] <= 0.01
        ),
        default=None,
    )


def too_much(rows, p99_ms: float) -> float | None:
    """The smallest offered rate above the sustained one: there the server was seen to fail. None if none was tried."""
    kept_up = sustained(rows, p99_ms) or 0
    tried = [row["offered_rps"] for row in rows if row["layout"] == "open-loop" and row["latency_ms_p99"] is not None]
    return min((rate for rate in tried if rate > kept_up), default=None)


def serving_table(rows, p99_ms: float) -> str:
    """A row per server: saturation, the sustained rate and the next one tried, latency at 0.7 of saturation, overload.

    "none" is sustained by a server that failed at every rate.
    """
    header = [
        "Server",
        "saturated /s",
        "sustained /s",
        "fails at /s",
        "p50 at 0.7",
        "p99 at 0.7",
        "in time at 3x/s",
        "p99 at 3x",
        "turned away",
        "errors",
        "batch",
        "pad ratio",
        "CPU ms",
        "RSS MB",
    ]
    body = []
    for name, of_server in by_variant(rows).items():
        by_share = {row["share"]: row for row in of_server if row["layout"] == "open-loop"}
        full = next((row for row in of_server if row["layout"] == "saturation"), None)
        if full is None:
            continue
        calm, over = by_share.get(0.7, {}), by_share.get(3.0, {})
        body.append(
            [
                name,
                number(full["achieved_rps"], 0),
                number(sustained(of_server, p99_ms), 0) or "none",
                number(too_much(of_server, p99_ms), 0),
                number(calm.get("latency_ms_p50"), 1),
                number(calm.get("latency_ms_p99"), 1),
                number(over.get("goodput_rps"), 0),
                number(over.get("latency_ms_p99"), 0),
                number(over.get("shed_fraction"), 2),
                number(over.get("error_fraction"), 2),
                number(full["batch_size_mean"], 1),
                number(full["padding_ratio"], 2),
                number(1e3 * full["server_cpu_seconds_per_request"], 2),
                number(full["peak_rss_mb"], 0),
            ]
        )
    return table(header, body)


def settings_table(rows) -> str:
    """The settings of each peer that were tried, with its rate at each; empty if none was."""
    tried: dict[str, list[dict]] = {}
    for row in rows:
        if row["layout"].startswith("sweep-"):
            tried.setdefault(row["variant"], []).append(row)
    body = []
    for name, of_peer in tried.items():
        ordered = sorted(of_peer, key=lambda row: -row["achieved_rps"])
        rates = [f"{row['layout'].removeprefix('sweep-')} {number(row['achieved_rps'], 0)}" for row in ordered]
        body.append([name, ", ".join(rates)])
    return table(["Peer", "processes x threads x batch, and answered/s, the best first"], body) if body else ""


def clients_table(rows) -> str:
    """Closed loops with the course's numbers of clients."""
    header = ["Server", "Clients", "answered/s", "p50 ms", "p95 ms", "p99 ms", "errors"]
    columns = (
        ("achieved_rps", 1),
        ("latency_ms_p50", 1),
        ("latency_ms_p95", 1),
        ("latency_ms_p99", 1),
        ("error_fraction", 3),
    )
    body = [
        [
            row["variant"],
            row["layout"].removeprefix("clients-"),
            *(number(row[name], digits) for name, digits in columns),
        ]
        for row in rows
        if row["layout"].startswith("clients-")
    ]
    return table(header, sorted(body, key=lambda line: (line[0], int(line[1]))))


def course_table(profile, course, by_name, gpu) -> str:
    """The course's rows and ours that repeat them: bytes, and how many times faster than the fp32 row of the device.

    gpu: rows by variant of our GPU, beside which the course's rows on a GPU are put; {} without one.
    """
    header = ["Course", "Device", "MB", "Ours", "MB", "difference", "s", "times faster", "our s", "times faster"]
    seconds = {(c["name"], c["device"]): float(c["seconds_per_prediction"]) for c in course}
    base = next(name for name, variant in profile.course.items() if variant == profile.baseline)
    body = []
    for c in course:
        name, device = profile.course[c["name"]], c["device"]
        timed = gpu.get(name) if device == "cuda" else by_name[name]
        milliseconds = timed and timed["latency_ms_p50"]
        size = by_name[name]["size_mb"]
        body.append(
            [
                c["name"],
                device,
                c["size_mb"],
                name,
                number(size, 3),
                f"{100 * (size / float(c['size_mb']) - 1):+.2f} %",
                c["seconds_per_prediction"],
                number(seconds[base, device] / seconds[c["name"], device], 2),
                number(milliseconds and milliseconds / 1e3, 4),
                number(timed and timed["latency_speedup"], 2),
            ]
        )
    return table(header, body)


def shape_table(rows, methods, baseline) -> str:
    """Milliseconds of one input of each length, and how many times faster than the baseline at that length."""
    shaped = {name: method["measured"].get("shapes") for name, method in methods.items()}
    slow = shaped[baseline]
    header = ["Variant", *(text for n in slow["lengths"] for text in (f"{n} pieces, ms", "faster"))]
    body = []
    for row in rows:
        if shaped[row["variant"]]:
            # the first number of threads, the first batch
            pairs = zip(*(side["milliseconds"][0][0] for side in (shaped[row["variant"]], slow)), strict=True)
            body.append(
                [row["variant"], *(cell for ms, base in pairs for cell in (number(ms, 2), number(base / ms, 2)))]
            )
    return table(header, body)


def plan_bound(gpu) -> list[dict]:
    """A GPU's rows whose throughput is that of cuDNN's plans, not the model's: no engine is half as fast as PyTorch."""
    return [row for row in gpu.rows if row["throughput_speedup"] is not None and row["throughput_speedup"] < 0.5]


def made_otherwise(gpu, methods) -> list[dict]:
    """A GPU's measured rows whose model, or one that it was made from, has other settings on the CPU, or is gone."""

    def settings(options: dict) -> dict:  # those that are set, wherever: an older record lacks what came since
        groups = [value for value in options.values() if isinstance(value, dict)]
        flat = dict(chain(options.items(), *(group.items() for group in groups)))
        return {name: value for name, value in flat.items() if value and value not in groups and name != "timed"}

    def is_same(name: str | None) -> bool:
        if name is None:
            return True
        here, there = (of.get(name, {}).get("options", {}) for of in (methods, gpu.methods))
        return settings(here) == settings(there) and is_same(there.get("parent"))

    return [row for row in gpu.rows if row["status"] == "ok" and not is_same(row["variant"])]


def gpu_table(gpu, by_name) -> str:
    """The GPU's measured rows, without the throughput of plan_bound(), and the same training's seconds on the CPU."""
    header = ["Variant", "Runs in", "F1", "MB", *TIMES, "Train s", "on the CPU"]
    bound, left_out = plan_bound(gpu), dict.fromkeys(("throughput_per_s", "throughput_speedup"))
    rows = [row | left_out if row in bound else row for row in gpu.rows]
    body = [
        [
            row["variant"],
            row["precision"],
            number(row["f1_test"], 3),
            number(row["size_mb"], 2),
            *time_cells(row),
            number(row["train_seconds"], 0),
            number(row["train_seconds"] and by_name.get(row["variant"], {}).get("train_seconds"), 0),
        ]
        for row in rows
        if row["status"] == "ok"
    ]
    return table(header, body)


def split_table(data) -> str:
    two = len(data["labels"]) == 2
    header = ["Split", "Sentences", "Positive" if two else "Largest class", "Mean pieces", "Median", "Longest"]
    body = [
        [
            name,
            str(split["sentences"]),
            number(split["class_share"].get("1") if two else max(split["class_share"].values()), 3),
            number(split["length_mean"], 1),
            str(split["length_median"]),
            str(split["length_max"]),
        ]
        for name, split in data["splits"].items()
    ]
    return table(header, body)
