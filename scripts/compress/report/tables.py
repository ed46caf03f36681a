"""The report's tables: a list of columns each, and one function that renders rows of them as Markdown.

A column is a title, a field and a format. A field is an attribute of the row, or a path such as "row.size_mb" or
"details.bits" through attributes and dictionary keys; a function of the row where no field is enough. None is an empty
cell, and a column without any value is left out.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from compress.results.statistics import MARGIN

PAGE = 140  # digits that a line of a table in the PDF holds
BREAK = re.compile(r" |(?<=\w)-(?=\w)(?![^`]*`)")  # where LaTeX may break a cell: not in code


@dataclass(frozen=True)
class Column:
    title: str
    field: str | Callable[[Any], Any]
    format: str = ""  # of numbers, as format() takes it; "" for text
    interval: tuple[str, str] | None = None  # its ends, shown in brackets: names next to the field's last one


def column_value(row, field: str | Callable):
    """A row's value of a column; a missing dictionary key is None, a missing attribute an error."""
    if callable(field):
        return field(row)
    for name in field.split("."):
        row = row.get(name) if isinstance(row, dict) else getattr(row, name)
        if row is None:
            return None
    return row


def format_number(value, form: str = ".1f") -> str:
    """A number in a format; empty for None. Nothing rounds to -0.0."""
    return "" if value is None else format(value, form.replace(".", "z.", 1) if form.endswith("f") else form)


def table_cell(row, column: Column) -> str:
    value = column_value(row, column.field)
    text = str(value) if isinstance(value, str) else format_number(value, column.format)
    if not text or not column.interval:
        return text
    owner = column.field.rpartition(".")[0]
    ends = [column_value(row, f"{owner}.{end}".lstrip(".")) for end in column.interval]
    if None in ends:
        return text
    return f"{text} [{', '.join(format_number(end, column.format) for end in ends)}]"


def column_widths(columns: list[Sequence[str]]) -> list[int]:
    """Dashes under the title of each column, by which pandoc divides the page: no word is wider than its column."""
    full = [max(map(text_width, texts)) for texts in columns]
    least = [max(text_width(word) for text in texts for word in BREAK.split(text)) for texts in columns]
    share = (PAGE - sum(least)) / max(sum(full) - sum(least), 1)  # of what the columns want beyond their words
    return [round(low + min(max(share, 0), 1) * (high - low)) for low, high in zip(least, full, strict=True)]


def text_width(text: str) -> float:
    """Of a table's cell, about in digits; capitals and "_" are half as wide again, and there is some space to spare."""
    return max(3, len(text) + 0.5 * sum(letter.isupper() or letter == "_" for letter in text) + 1.5)


def markdown_table(columns: Iterable[Column], rows: Iterable) -> str:
    """A Markdown table of the rows; empty for no rows. Columns after the first are aligned to the right."""
    columns, rows = list(columns), list(rows)
    if not rows:
        return ""
    cells = [[table_cell(row, column) for column in columns] for row in rows]
    kept = [i for i in range(len(columns)) if i == 0 or any(line[i] for line in cells)]
    lines = [[columns[i].title for i in kept], *([line[i] for i in kept] for line in cells)]
    widths = column_widths(list(zip(*lines, strict=True)))
    dashes = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], dashes, *lines[1:]])


def table(rows: Iterable, name: str) -> str:
    """The table TABLES[name] of the rows."""
    return markdown_table(TABLES[name], rows)


def table_by_length(rows: Iterable, lengths: Iterable[int]) -> str:
    """Milliseconds and speed-up at each length, from views.latency_by_length()."""
    columns = [Column("Variant", "variant")]
    for n in lengths:
        columns += [Column(f"{n} pieces, ms", f"{n}.ms", ".2f"), Column("faster", f"{n}.faster", ".2f")]
    return markdown_table(columns, rows)


def literal_markdown(text: str) -> str:
    """Text as it is, also where Markdown would read marks in it."""
    return re.sub(r"([\\`*_{}\[\]<>#|$@~^])", r"\\\1", text)


def labelled(row) -> str:
    """A variant's name, with the champions that it is in brackets."""
    return row.variant + (f" ({', '.join(row.champions)})" if row.champions else "")


def initial_weights(line: dict) -> str:
    options = line["row"].options
    if line["stage"] == "training" and options.get("adaptation"):
        return "its clustered weights"
    starts = {"random": "random weights", "encoder": "the smaller pretrained encoder"}
    return starts.get(options.get("initialization"), line["row"].parent)


def weights_held(row) -> str:
    """Megabytes of a file's weights by type, without the types that hold next to nothing."""
    held = row.details.get("initializer_bytes", {})
    return ", ".join(f"{kind} {size / 1e6:.1f}" for kind, size in held.items() if size > 1e5)


def engine_settings(row) -> str:
    names = ("PERFORMANCE_HINT", "NUM_STREAMS", "INFERENCE_NUM_THREADS", "INFERENCE_PRECISION_HINT")
    properties = row.details.get("properties", {})
    return ", ".join(properties[name].lower() for name in names if name in properties)


def rates(per_second: Iterable[float]) -> str:
    return ", ".join(format_number(rate, ".0f") for rate in per_second)


def keeps_quality(row) -> str | None:
    return verdict(row.non_inferior, row.f1_drop_ci_low)


def verdict(non_inferior: bool | None, low: float | None) -> str | None:
    """Whether a quality is kept; a plain no if the whole interval of the drop, from `low` on, is above the margin."""
    lost_for_sure = low is not None and low > MARGIN
    return {True: "yes", False: "no" if lost_for_sure else "not shown"}.get(non_inferior)


def teacher_share(line: dict) -> float | None:
    """The teacher's share of a training's loss; none for the baseline, which has no teacher."""
    return None if line["row"].method == "finetune" else line["training"]["soft_weight"]


def throughput_with_equal_labels(line: dict) -> float | None:
    """The throughput's ratio of a row whose labels don't depend on the batch."""
    return None if line["row"].batch_flip_rate else line["row"].throughput_speedup


def course_name(line: dict) -> str:
    return f"{line['name']} ({line['device']})"


def front_name(line: dict) -> str:
    """A model's name on the front page, with its variant if the profile has it."""
    return f"{line['name']}: `{line['row'].variant}`" if line["own"] else line["name"]


DROP = ("f1_drop_ci_low", "f1_drop_ci_high")
OUT_OF_DOMAIN = ("ood_drop_low", "ood_drop_high")
SPEEDUP = ("latency_speedup_low", "latency_speedup_high")
TIMES = [
    Column("ms p50", "latency_ms_p50", ".2f"),
    Column("ms p95", "latency_ms_p95", ".2f"),
    Column("faster", "latency_speedup", ".2f", SPEEDUP),
    Column("faster than ORT fp32", "speedup_over_ort_fp32", ".2f"),
    Column("ms from text", "text_latency_ms_p50", ".2f"),
    Column(
        "faster from text", "text_latency_speedup", ".2f", ("text_latency_speedup_low", "text_latency_speedup_high")
    ),
    Column("per s", "throughput_per_s", ".0f"),
    Column("faster", "throughput_speedup", ".2f"),
]

TABLES = {
    "overview": [
        Column("Model", front_name),
        Column("MB", "row.size_mb", ".1f"),
        Column("ms from text", "row.text_latency_ms", ".2f"),
        Column("speed-up over ORT", "over_ort", ".2g"),
        Column("F1", "row.comparable_f1", ".3f"),
        Column("F1 points lost", "row.f1_drop_points", ".1f", DROP),
        Column("out of domain", "row.ood_drop_points", ".1f", OUT_OF_DOMAIN),
        Column("Keeps the quality", lambda line: line["kept"] or keeps_quality(line["row"])),
    ],
    "answers": [
        Column("If you need", "need"),
        Column("take", lambda line: f"`{line['row'].variant}`"),
        Column("MB", "row.size_mb", ".1f"),
        Column("ms from text", "row.text_latency_ms", ".2f"),
        Column("times the throughput, in batches", throughput_with_equal_labels, ".1f"),
        Column("F1 points lost", "row.f1_drop_points", ".1f", DROP),
        Column("out of domain", "row.ood_drop_points", ".1f", OUT_OF_DOMAIN),
    ],
    "headline": [
        Column("Name", "name"),
        Column("Device", "device"),
        Column("Training", "trained"),
        Column("Seeds", lambda line: line.get("seeds"), "d"),
        Column("F1_test", "f1_test", ".3f"),
        Column("Size(mb)", "size_mb", ".3f"),
        Column("Time for 1 predict(s)", "seconds", ".5f"),
    ],
    "family": [
        Column("Variant", labelled),
        Column("MB", "size_mb", ".1f"),
        Column("faster", "latency_speedup", ".2f", SPEEDUP),
        Column("faster than ORT fp32", "speedup_over_ort_fp32", ".2f"),
        Column("F1 points lost", "f1_drop_points", ".1f", DROP),
        Column("out of domain", "ood_drop_points", ".1f", OUT_OF_DOMAIN),
        Column("Keeps the quality", keeps_quality),
    ],
    "quality": [
        Column("Variant", labelled),
        Column("Seeds", "seeds", "d"),
        Column("F1", "f1_test", ".3f", ("f1_ci_low", "f1_ci_high")),
        Column("Drop", "f1_drop_points", ".1f", DROP),
        Column("Keeps the quality", keeps_quality),
        Column("Drop out of domain", "ood_drop_points", ".1f", OUT_OF_DOMAIN),
        Column("p (Holm)", "p_adjusted", ".2g"),
        Column("Accuracy", "accuracy_test", ".3f"),
        Column("ECE", "ece_test", ".3f"),
        Column("Flips", "flip_rate", ".3f"),
        Column("Batch flips", "batch_flip_rate", ".4f"),
    ],
    "costs": [
        Column("Variant", labelled),
        Column("MB", "size_mb", ".2f"),
        Column("smaller", "size_ratio", ".1f"),
        *TIMES,
        Column("RSS MB", "peak_rss_mb", ".0f"),
        Column("Train s", "train_seconds", ".0f"),
        Column("All s", "seconds", ".0f"),
    ],
    "domains": [
        Column("Variant", "variant"),
        Column("Seeds", "seeds", "d"),
        Column("Movies", "f1_macro_test", ".3f"),
        Column("accuracy", "accuracy_test", ".3f"),
        Column("Amazon", "f1_macro_amazon", ".3f"),
        Column("accuracy", "accuracy_amazon", ".3f"),
        Column("Tweets", "f1_macro_tweets", ".3f"),
        Column("accuracy", "accuracy_tweets", ".3f"),
        Column("NYT", "f1_macro_nyt", ".3f"),
        Column("accuracy", "accuracy_nyt", ".3f"),
        Column("Drop out of domain", "ood_drop_points", ".1f", OUT_OF_DOMAIN),
    ],
    "seeds": [
        Column("Variant", "variant"),
        Column("Seeds", "seeds", "d"),
        Column("Mean F1", "f1_mean", ".4f"),
        Column("sd", "f1_sd", ".4f"),
        Column("Mean drop", "drop_mean", ".2f", ("drop_low", "drop_high")),
        Column("At most", "drop_upper_one_sided", ".2f"),
        Column("Keeps the quality", lambda row: verdict(row.non_inferior, row.drop_low)),
        Column("p", "mcnemar_p", ".2g"),
        Column("p (Holm)", "p_adjusted", ".2g"),
    ],
    "trainings": [
        Column("Variant", "row.variant"),
        Column("Starts from", initial_weights),
        Column("Sentences", lambda line: " + ".join(line["training"].get("transfer", ["train"]))),
        Column("Epochs", "training.epochs", "g"),
        Column("Batch", "training.batch_size", "g"),
        Column("Learning rate", "training.learning_rate", "g"),
        Column("alpha", teacher_share, "g"),
        Column("T", lambda line: line["training"]["temperature"] if teacher_share(line) else None, "g"),
        Column("Dropout", "training.dropout", "g"),
        Column("Frozen", lambda line: "embeddings" if line["training"]["freeze_embeddings"] else None),
    ],
    "pruned": [
        Column("Variant", "row.variant"),
        Column("Zeros", "row.details.sparsity", ".0%"),
        Column("Encoder MB", "encoder_mb", ".1f"),
        Column("Embeddings MB", "row.measured.embedding_mb", ".1f"),
        Column("Drop", "row.f1_drop_points", ".1f", DROP),
        Column("and int8: MB", "partner.size_mb", ".1f"),
        Column("Drop", "partner.f1_drop_points", ".1f", DROP),
    ],
    "sensitivity": [
        Column("Group", "group"),
        Column("points lost, 8 bits", "lost_8", ".1f"),
        Column("4 bits", "lost_4", ".1f"),
        Column("rms logit error, 8 bits", "error_8", ".3f"),
        Column("4 bits", "error_4", ".3f"),
        Column("MB saved by 4", "mb_saved", ".2f"),
        Column("chosen", "bits", "d"),
    ],
    "engines": [
        Column("Variant", "variant"),
        Column("Precision", "precision"),
        Column("Integer products", "details.integer_products", "d"),
        Column("Float products", "details.float_products", "d"),
        Column("Fused attention", "details.fused_attention", "d"),
        Column("Weights, MB", weights_held),
        Column("Logit error", "details.largest_logit_difference", ".2g"),
        Column("Same label", "details.label_agreement", ".2f"),
    ],
    "cold": [
        Column("Variant", "variant"),
        Column("load ms", "measured.load_ms", ".0f"),
        Column("first call ms", "measured.first_ms", ".2f"),
        Column("new length ms", "measured.new_length_ms", ".2f"),
        Column("same length ms", "measured.same_length_ms", ".2f"),
        Column("settings", engine_settings),
    ],
    "optimum": [
        Column("Optimum", "row.variant"),
        Column("direct", "direct.variant"),
        Column("F1 points lost", "row.f1_drop_points", ".1f", DROP),
        Column("direct", "direct.f1_drop_points", ".1f", DROP),
        Column("MB", "row.size_mb", ".2f"),
        Column("direct", "direct.size_mb", ".2f"),
        Column("faster", "row.latency_speedup", ".2f", SPEEDUP),
        Column("direct", "direct.latency_speedup", ".2f", SPEEDUP),
        Column("batched", "row.throughput_speedup", ".2f"),
        Column("direct", "direct.throughput_speedup", ".2f"),
        Column("RSS MB", "row.peak_rss_mb", ".0f"),
        Column("direct", "direct.peak_rss_mb", ".0f"),
    ],
    "changes": [
        Column("Change", "question"),
        Column("With", "new.variant"),
        Column("Without", "old.variant"),
        Column("F1 points gained", "gained", "+.1f"),
        Column("by seed", lambda line: f"{line['least']:+z.1f} to {line['most']:+z.1f}" if line["seeds"] > 1 else None),
        Column("times smaller", "smaller", ".2f"),
        Column("times faster", "faster", ".2f"),
    ],
    "champions": [
        Column("Champion", "name"),
        Column("Variant", "row.variant"),
        Column("τ", "rule.tolerance", ".1f"),
        Column("Points lost, validation", "validation_drop_points", ".2f"),
        Column("standard error", "validation_standard_error", ".2f"),
        Column("Agreement lost", "agreement_drop_points", ".2f"),
        Column("test", "row.f1_drop_points", ".2f", DROP),
        Column("Keeps the quality", lambda line: keeps_quality(line["row"])),
        Column("out of domain", "row.ood_drop_points", ".2f", OUT_OF_DOMAIN),
        Column("smaller", "row.size_ratio", ".2f"),
        Column("faster", "row.latency_speedup", ".2f", SPEEDUP),
        Column("faster, batched", "row.throughput_speedup", ".2f"),
        Column("MB", "row.size_mb", ".2f"),
        Column("ms", "row.latency_ms", ".2f"),
        Column("Within tolerance", lambda line: f"{line['within_tolerance']} of {line['candidates']}"),
    ],
    "goals": [
        Column("Profile", "profile"),
        Column("Model", "model"),
        Column("Measure", "measure"),
        Column("Goal", lambda line: f"{line['bound']} {line['value']}"),
        Column("Measured", "measured"),
        Column("Seeds", "row.seeds", "d"),
        Column("Outcome", "outcome"),
    ],
    "budgets": [
        Column("Budget", "limit"),
        Column("Family", "family"),
        Column("Variant", "row.variant"),
        Column("Cost", "cost"),
        Column("F1, validation", "row.validation_f1", ".3f"),
        Column("Points lost, test", "row.f1_drop_points", ".1f", DROP),
    ],
    "prices": [
        Column("Family", "family"),
        Column("Variant", "row.variant"),
        Column("Points lost", "row.f1_drop_points", ".1f", DROP),
        Column("Batch flips", "row.batch_flip_rate", ".3f"),
        Column("Sentences/s", "row.throughput_per_s", ".0f"),
        Column("Core-seconds per million", "core_seconds", ".0f"),
        Column("USD per million", "usd", ".4f"),
        Column("cheaper", "cheaper", ".1f"),
    ],
    "flips": [
        Column("Sentence", lambda row: literal_markdown(row.text)),
        Column("Label", "label"),
        Column("Baseline predicts", "answer"),
        Column("Confidence", "confidence", ".2f"),
        Column("Variants that differ", lambda row: f"{row.flipped} of {row.variants}"),
    ],
    "gpu": [
        Column("Variant", "variant"),
        Column("Precision", "precision"),
        Column("F1", "f1_test", ".3f"),
        Column("MB", "size_mb", ".2f"),
        *TIMES,
        Column("Train s", "train_seconds", ".0f"),
        Column("on the CPU", "cpu_train_seconds", ".0f"),
    ],
    "course": [
        Column("Course", "name"),
        Column("Device", "device"),
        Column("MB", "size_mb", ".3f"),
        Column("Ours", "row.variant"),
        Column("MB", "row.size_mb", ".3f"),
        Column("difference", lambda line: 100 * (line["row"].size_mb / line["size_mb"] - 1), "+.2f"),
        Column("s", "seconds", ".4f"),
        Column("times faster", "faster", ".2f"),
        Column("our s", "our_seconds", ".4f"),
        Column("times faster", "timed.latency_speedup", ".2f"),
    ],
    "course_trained": [
        Column("Course", course_name),
        Column("Trained", "trained"),
        Column("F1", "f1_test", ".3f"),
        Column("MB", "size_mb", ".1f"),
        Column("s", "seconds", ".4f"),
        Column("faster", "faster", ".2f"),
        Column("Ours", "row.variant"),
        Column("Seeds", "row.seeds", "d"),
        Column("F1", "row.f1_test", ".3f"),
        Column("Points lost", "row.f1_drop_points", ".1f", DROP),
        Column("MB", "row.size_mb", ".1f"),
        Column("smaller", "row.size_ratio", ".2f"),
        Column("s", lambda line: line["row"].latency_ms_p50 and line["row"].latency_ms_p50 / 1e3, ".4f"),
        Column("faster", "row.latency_speedup", ".2f", SPEEDUP),
    ],
    "course_short": [
        Column("Course", course_name),
        Column("Ours", "row.variant"),
        Column("F1, course", "f1_test", ".3f"),
        Column("F1, ours", "row.f1_test", ".3f"),
        Column("Points lost, ours", "row.f1_drop_points", ".1f", DROP),
        Column("MB, course", "size_mb", ".1f"),
        Column("MB, ours", "row.size_mb", ".1f"),
        Column("s per sentence, course", "seconds", ".3f"),
        Column("s, ours", lambda line: line["row"].text_latency_ms and line["row"].text_latency_ms / 1e3, ".4f"),
    ],
    "against_large": [
        Column("Model", "name"),
        Column("Variant", "row.variant"),
        Column("MB", "row.size_mb", ".2f"),
        Column("smaller", "smaller", ".1f"),
        Column("ms", "row.latency_ms", ".2f"),
        Column("faster", "faster", ".1f"),
        Column("F1 points lost", "lost.drop_mean", ".1f", ("drop_low", "drop_high")),
        Column("out of domain", "lost.ood_drop_mean", ".1f", OUT_OF_DOMAIN),
    ],
    "both_sizes": [
        Column("Method", "method"),
        Column("Small: points lost", "small.f1_drop_points", ".1f", DROP),
        Column("smaller", "small.size_ratio", ".2f"),
        Column("faster", "small.latency_speedup", ".2f"),
        Column("Large: points lost", "large.f1_drop_points", ".1f", DROP),
        Column("smaller", "large.size_ratio", ".2f"),
        Column("faster", "large.latency_speedup", ".2f"),
    ],
    "published": [
        Column("Method", lambda line: f"{line['method']} [@{line['cite']}]"),
        Column("Model", "model"),
        Column("Task", "task"),
        Column("times smaller", "smaller"),
        Column("times faster", "faster"),
        Column("Quality", "quality"),
        Column("Hardware", "hardware"),
    ],
    "splits": [
        Column("Split", "name"),
        Column("Sentences", "sentences", "d"),
        Column("Positive", "positive", ".3f"),
        Column("Largest class", "largest", ".3f"),
        Column("Mean pieces", "length_mean", ".1f"),
        Column("Median", "length_median", "d"),
        Column("Longest", "length_max", "d"),
    ],
    "older": [
        Column("Seed", "seed"),
        Column("Older split", "split"),
        Column("Test sentences in its train", "train", "d"),
        Column("in its validation", "validation", "d"),
        Column("in its test", "test", "d"),
    ],
    "services": [
        Column("Service", "variant"),
        Column("Classes", "classes", "d"),
        Column("Trained on", "train_sentences", "d"),
        Column("Tested on", "test_sentences", "d"),
        Column("F1", "f1_test", ".3f"),
        Column("Accuracy", "accuracy_test", ".3f"),
        Column("Largest class", "largest_class", ".3f"),
        Column("Batch flips", "batch_flip_rate", ".3f"),
        Column("MB", "size_mb", ".2f"),
        Column("Train s", "train_seconds", ".0f"),
    ],
    "servers": [
        Column("Server", "variant"),
        Column("saturated /s", "full.achieved_rps", ".0f", ("achieved_rps_low", "achieved_rps_high")),
        Column("sustained /s", lambda server: format_number(server.sustained, ".0f") or "none"),
        Column("fails at /s", lambda server: rates(server.failed)),
        Column("not known at /s", lambda server: rates(server.unknown)),
        Column("p50 ms, calm", "calm.latency_ms_p50", ".1f"),
        Column("p99 ms, calm", "calm.latency_ms_p99", ".1f"),
        Column("in time in overload /s", "goodput", ".0f"),
        Column("p99 ms, overload", "over.latency_ms_p99", ".0f"),
        Column("rejected", "over.shed_fraction", ".2f"),
        Column("errors", "over.error_fraction", ".2f"),
        Column("batch", "full.batch_size_mean", ".1f"),
        Column("pad ratio", "full.padding_ratio", ".2f"),
        Column("CPU ms", "cpu_ms", ".2f"),
        Column("in the model", "model_ms", ".2f"),
        Column("RSS MB", "peak_rss_mb", ".0f"),
    ],
    "rates": [
        Column("Server", "row.variant"),
        Column("offered /s", "row.offered_rps", ".0f"),
        Column("of saturation", "row.share", ".2f"),
        Column("requests", "row.requests", "d"),
        Column("p99 ms", "row.latency_ms_p99", ".1f"),
        Column("from", "row.latency_ms_p99_low", ".1f"),
        Column("to", "row.latency_ms_p99_high", ".1f"),
        Column("rejected", "row.shed_fraction", ".2f"),
        Column("rule", lambda judged: "passes" if judged.passes else "fails"),
    ],
    "clients": [
        Column("Server", "row.variant"),
        Column("Clients", "clients", "d"),
        Column("answered/s", "row.achieved_rps", ".1f"),
        Column("p50 ms", "row.latency_ms_p50", ".1f"),
        Column("p95 ms", "row.latency_ms_p95", ".1f"),
        Column("p99 ms", "row.latency_ms_p99", ".1f"),
        Column("errors", "row.error_fraction", ".3f"),
    ],
    "settings": [
        Column("Peer", "name"),
        Column(
            "processes x threads x batch, and answered/s, the best first",
            lambda line: ", ".join(f"{setting} {rate:.0f}" for setting, rate in line["settings"]),
        ),
    ],
}
