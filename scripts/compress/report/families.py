"""The families of compression that are compared at equal budgets: what was done to a variant's weights.

They are finer than the profile's field `family`, and they count what was done to a variant's ancestors.
"""

from collections.abc import Iterable

from compress.results.reading import PooledRow, Results

MIX, ENGINE_ALONE = "a mix", "another engine alone"
FAMILIES = (
    *(f"int{bits}" for bits in range(8, 1, -1)),
    *("ternary", "16-bit floats", "clustering", "pruning", "low rank", "student", "shallow"),
    *(MIX, ENGINE_ALONE),
)
BY_METHOD = {
    "int8-dynamic": {"int8"},
    "int8-saved": {"int8"},
    "mixed-precision": {"int8", "int4"},
    "ternary-bert": {"ternary"},
    "prune": {"pruning"},
    "structured": {"pruning"},
    "low-rank": {"low rank"},
    "cluster": {"clustering"},
    "deep-compression": {"clustering"},
    "distill": {"student"},
    "cut": {"student"},
    "trim": {"student"},
    "tfidf": {"shallow"},
    "static": {"shallow"},
}
# Options of the other methods that say how weights are stored; the first word of the value decides.
STORAGE_OPTIONS = ("precision", "compression", "quantization", "scheme", "dtype", "level")
BY_STORAGE = {"int8": "int8", "dynamic": "int8", "static": "int8", "int4": "int4", "codebook": "clustering"}
BY_STORAGE |= dict.fromkeys(("fp16", "bf16", "float16", "bfloat16", "O4"), "16-bit floats")


def ingredients(variant: str, results: Results) -> set[str]:
    """What was done to the weights of a variant and of its ancestors, with a cascade's second model."""
    found = set()
    for row in results.made_of(variant):
        found |= BY_METHOD.get(row.method, set())
        if "bits" in row.options:
            found.add(f"int{row.options['bits']}")
        words = [(row.options.get(option) or "").split("-")[0] for option in STORAGE_OPTIONS]
        found |= {BY_STORAGE[word] for word in words if word in BY_STORAGE}
    return found


def family_of(variant: str, results: Results) -> str:
    found = ingredients(variant, results)
    return MIX if len(found) > 1 else found.pop() if found else ENGINE_ALONE


def by_family(rows: Iterable[PooledRow], results: Results) -> dict[str, list[PooledRow]]:
    found: dict[str, list[PooledRow]] = {name: [] for name in FAMILIES}
    for row in rows:
        found[family_of(row.variant, results)].append(row)
    return {name: rows for name, rows in found.items() if rows}
