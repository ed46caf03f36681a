"""Model cards: README.md and measured.json in a variant's folder. Neither counts among the bytes of the model."""

from pathlib import Path

from compress.config.profile import Profile
from compress.files import sha256_file, write_json, write_text
from compress.paths import ROOT
from compress.results.rows import VariantRow
from compress.results.seedfile import Seed
from compress.storage.artifact import read_artifact

# Options that the text shows elsewhere, or that are no options of the method.
LEFT_OUT = ("name", "method", "parent", "chapter", "family", "scope", "timed", "threads", "training")

CARD = """# {row.variant}

{description}. Classes: {labels}. Method: {row.method}{of_parent}{options}. Runs on {row.backend} in {row.precision}.

| F1 on the test set | 95 % interval | points below the fine-tuned model | MB | ms at batch 1 |
|---|---|---|---|---|
| {f1} | {interval} | {drop} | {row.size_mb:.2f} | {milliseconds} |

To load it, from the repository's folder:

```python
import sys; sys.path.insert(0, "scripts")
from pathlib import Path; from compress.engines.predictor import load, load_tokenizer, predict
folder = Path("{folder}")
ids = [row.ids for row in load_tokenizer(folder, {artifact.max_length}).encode_batch(["A film that grows on you."])]
print(predict(load(folder, threads={row.threads}), ids))  # logits, one column per class
```

Or: `.venv/bin/python scripts/predict.py --model {folder} "A film that grows on you."`
"""


def write_cards(profile: Profile, rows: list[VariantRow], seeds: list[Seed]) -> None:
    """A card for each model in build/ that these numbers are of; a model that was built since then keeps its own."""
    measured = {(seed.number, name): entry.record for seed in seeds for name, entry in seed.entries.items()}
    for row in rows:
        folder = profile.variant_folder(row.variant, row.seed, row.device)
        is_built = row.status == "ok" and (folder / "artifact.json").exists()
        if is_built and sha256_file(folder / "artifact.json") == measured[row.seed, row.variant].artifact_sha256:
            write_card(profile, folder, row)


def write_card(profile: Profile, folder: Path, row: VariantRow) -> None:
    """README.md for people, measured.json for the service, which reports its content."""
    artifact = read_artifact(folder, verify=False)
    options = [f"{name}: {value}" for name, value in artifact.options.items() if name not in LEFT_OUT and value]
    has_drop = row.f1_drop_ci_low is not None
    facts = {
        "description": profile.description[:1].upper() + profile.description[1:],
        "labels": ", ".join(artifact.labels),
        "of_parent": f" of {row.parent}" if row.parent else "",
        "options": f" ({', '.join(options)})" if options else "",
        "f1": profile.no_quality if row.f1_test is None else f"{row.f1_test:.4f}",
        "interval": "" if row.f1_ci_low is None else f"{row.f1_ci_low:.4f} to {row.f1_ci_high:.4f}",
        "drop": f"{row.f1_drop_points:.2f}" if has_drop else "",
        "milliseconds": "not timed" if row.latency_ms_p50 is None else f"{row.latency_ms_p50:.2f}",
        "folder": folder.relative_to(ROOT),
    }
    write_text(folder / "README.md", CARD.format(row=row, artifact=artifact, **facts))
    write_json(folder / "measured.json", {"f1_test": row.f1_test, "batch_flip_rate": row.batch_flip_rate})
