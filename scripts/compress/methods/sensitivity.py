"""Sensitivity to low precision: validation F1 and logits with one group of tensors quantized at a time."""

import numpy as np
import torch
from compress.engines.predictor import predict
from compress.engines.pytorch import TorchPredictor
from compress.methods.integers import quantize_weight
from compress.methods.networks import is_matrix
from compress.metrics import quality
from torch import nn


def group_of(name: str) -> str:
    """The group of tensors that a module belongs to, by the module's name."""
    parts = name.split(".")
    if "embeddings" in parts or "relative_attention_bias" in parts:
        return "embeddings"
    if "layer" in parts:
        return f"layer {parts[parts.index('layer') + 1]} " + ("attention" if "attention" in parts else "ffn")
    return "pooler" if "pooler" in parts else "head"


def groups_of(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Modules with a weight matrix by group, in the model's order."""
    groups: dict[str, list[nn.Module]] = {}
    for name, module in model.named_modules():
        if is_matrix(module):
            groups.setdefault(group_of(name), []).append(module)
    return groups


def logits_of(model: nn.Module, ids) -> np.ndarray:
    return predict(TorchPredictor(model, "cpu", "fp32", torch.get_num_threads()), ids, batch_size=64)


def weights_of(groups: dict[str, list[nn.Module]]) -> dict[nn.Module, torch.Tensor]:
    """The current weights of all modules in the groups."""
    return {module: module.weight.data for modules in groups.values() for module in modules}


def set_bits(modules: list[nn.Module], bits: int | None, originals: dict[nn.Module, torch.Tensor]) -> None:
    """Rounds the modules' weights to `bits`; None restores the originals."""
    for module in modules:
        weight = originals[module]
        module.weight.data = weight if bits is None else torch.from_numpy(quantize_weight(weight, bits).dense())


def sensitivity(model: nn.Module, ids, labels: np.ndarray) -> list[dict]:
    """One row per group and bit width: f1 and rms logit error on validation with only that group quantized.

    ids, labels: token ids and classes of the validation sentences; bytes_saved is against float32.
    """
    groups = groups_of(model)
    originals = weights_of(groups)
    reference = logits_of(model, ids)
    rows = [{"group": "none", "bits": 32, "bytes_saved": 0, "f1": quality(reference, labels)["f1"], "rms_error": 0.0}]
    for group, modules in groups.items():
        for bits in (8, 4):
            set_bits(modules, bits, originals)
            logits = logits_of(model, ids)
            set_bits(modules, None, originals)
            rows.append(
                {
                    "group": group,
                    "bits": bits,
                    "bytes_saved": sum(m.weight.numel() for m in modules) * (32 - bits) // 8,
                    "f1": quality(logits, labels)["f1"],
                    "rms_error": float(np.sqrt(np.mean((logits - reference) ** 2))),
                }
            )
            print(f"sensitivity: {group} with {bits} bits: F1 {rows[-1]['f1']:.4f}", flush=True)
    return rows


def choose_bits(model: nn.Module, ids, labels: np.ndarray, rows: list[dict], tolerance: float) -> dict[str, int]:
    """Bits per group: 8 everywhere, then 4 for one group after another, in order of error per byte saved.

    A group keeps 4 bits if validation F1 stays within `tolerance` points of the model with 8 bits everywhere.
    rows: the result of sensitivity().
    """
    groups = groups_of(model)
    originals = weights_of(groups)
    four = {row["group"]: row["rms_error"] ** 2 / row["bytes_saved"] for row in rows if row["bits"] == 4}
    chosen = dict.fromkeys(groups, 8)
    for modules in groups.values():
        set_bits(modules, 8, originals)
    floor = quality(logits_of(model, ids), labels)["f1"] - tolerance / 100
    for group in sorted(four, key=four.get):
        set_bits(groups[group], 4, originals)
        if quality(logits_of(model, ids), labels)["f1"] >= floor:
            chosen[group] = 4
        else:
            set_bits(groups[group], 8, originals)
    for modules in groups.values():
        set_bits(modules, None, originals)
    return chosen
