"""What the classes of the schema have in common, and how a validation error reads."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Positive = Annotated[int, Field(gt=0)]


class Strict(BaseModel):
    """A frozen model that converts no types and allows no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def exactly_one(model: Strict, *keys: str) -> Strict:
    """The model; raises ValueError unless exactly one of the keys is given."""
    if sum(getattr(model, key) is not None for key in keys) != 1:
        raise ValueError(f"give exactly one of the keys {', '.join(map(repr, keys))}")
    return model


def explain(path: Path | str, error: ValidationError, *keys: str) -> str:
    """Pydantic's errors as 'file: key: what is wrong', one a line; `keys` lead to the value that was checked."""
    lines = []
    for item in error.errors(include_url=False, include_context=False):
        key = ".".join(map(str, (*keys, *item["loc"]))) or "(whole file)"
        lines.append(f"{path}: {key}: {item['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)
