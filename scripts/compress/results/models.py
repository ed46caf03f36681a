"""The folders of models by the names that a user gives: a variant, a service, a champion, or the folder itself."""

from pathlib import Path

from compress.config.profile import Profile
from compress.errors import UserError
from compress.results.reading import read_champions


def model_folder(profile: Profile, model: str, seed: int = 0, device: str = "cpu") -> Path:
    """Raises UserError that says what to do if there is no such model, or none built yet."""
    variants = {variant.name for variant in profile.everything}
    rules = [rule.name for rule in profile.champions]
    if model not in (*variants, *rules):
        if (Path(model) / "artifact.json").exists():
            return Path(model)
        raise UserError(
            f"{model}: no model there (no artifact.json), and no variant or champion of {profile.file} has this name; "
            f"champions: {', '.join(rules) or 'none'}"
        )
    name = model
    if model in rules:
        facts = read_champions(profile.results).get(model)
        if facts is None:
            raise UserError(f"{profile.results}/champions.json: no {model}; run: make all PROFILE={profile.name}")
        name = facts["chosen"]
        if name not in variants:
            raise UserError(f"{profile.results}/champions.json: no variant is called {name}; run: make results")
    folder = profile.variant_folder(name, seed, device)
    if not (folder / "artifact.json").exists():
        options = f" DEVICE={device}" if device != "cpu" else ""
        raise UserError(f"{folder}: {model} is not built; run: make model PROFILE={profile.name} NAME={name}{options}")
    return folder


def served_folders(profile: Profile, models: list[str] | None, seed: int = 0) -> list[Path]:
    """The folders of the models to serve: by default the profile's services; raises UserError if it has none."""
    models = models or [service.name for service in profile.services]
    if not models:
        raise UserError(f"profile {profile.name} has no services: name a model with --model")
    return [model_folder(profile, model, seed) for model in models]
