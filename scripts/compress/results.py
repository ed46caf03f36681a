"""What figures and report read: results/<profile>/ and nothing else."""

import csv
import json

from compress.profile import Profile, UserError

TEXT = {"variant", "chapter", "method", "parent", "backend", "precision", "device", "trained", "status", "reason"}


def read_results(profile: Profile) -> tuple[list[dict], dict, dict]:
    """Rows of variants.csv (numbers as float, empty cells as None), environment.json and data.json."""
    try:
        with open(profile.results / "variants.csv", encoding="utf-8", newline="") as file:
            rows = [{key: _value(key, text) for key, text in row.items()} for row in csv.DictReader(file)]
        environment = json.loads((profile.results / "environment.json").read_text("utf-8"))
        data = json.loads((profile.results / "data.json").read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no results there; run: make results PROFILE={profile.name}") from None
    except ValueError as error:
        raise UserError(f"{profile.results}: damaged results ({error}); run: make results") from None
    if not rows:
        raise UserError(f"{profile.results / 'variants.csv'}: no rows; run: make results PROFILE={profile.name}")
    return rows, environment, data


def _value(key: str, text: str):
    if key in TEXT:
        return text
    return float(text) if text else None
