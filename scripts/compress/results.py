"""What figures and report read: results/<profile>/ and nothing else."""

import csv
import json
from dataclasses import dataclass

from compress.profile import Profile, UserError

TEXT = {"variant", "chapter", "method", "parent", "backend", "precision", "device", "trained", "status", "reason"}


@dataclass(frozen=True)
class Results:
    rows: list[dict]  # of variants.csv: numbers as float, empty cells as None
    environment: dict
    data: dict
    methods: dict  # by variant: options, details, seconds


def read_results(profile: Profile) -> Results:
    """Everything in results/<profile>/; raises UserError saying what to run when it is missing or damaged."""
    try:
        with open(profile.results / "variants.csv", encoding="utf-8", newline="") as file:
            rows = [{key: _value(key, text) for key, text in row.items()} for row in csv.DictReader(file)]
        others = [
            json.loads((profile.results / f"{name}.json").read_text("utf-8"))
            for name in ("environment", "data", "methods")
        ]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no results there; run: make results PROFILE={profile.name}") from None
    except ValueError as error:
        raise UserError(f"{profile.results}: damaged results ({error}); run: make results") from None
    if not rows:
        raise UserError(f"{profile.results / 'variants.csv'}: no rows; run: make results PROFILE={profile.name}")
    return Results(rows, *others)


def _value(key: str, text: str):
    if key in TEXT:
        return text
    return float(text) if text else None
