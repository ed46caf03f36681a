"""Which tensors bear few bits: one group at a time is quantized, and the validation set is asked again."""

import numpy as np
import torch
from compress.engines.predictor import TorchPredictor, predict
from compress.methods.quantize import is_matrix, quantize
from compress.metrics import quality


def group_of(name: str) -> str:
    """The group that a module's parameters are quantized with."""
    parts = name.split(".")
    if "embeddings" in parts:
        return "embeddings"
    if "layer" in parts:
        return f"layer {parts[parts.index('layer') + 1]} " + ("attention" if "attention" in parts else "ffn")
    return "pooler" if "pooler" in parts else "head"


def groups(model) -> dict[str, list[torch.nn.Module]]:
    """Modules with a weight matrix by group, in the model's order."""
    found: dict[str, list[torch.nn.Module]] = {}
    for name, module in model.named_modules():
        if is_matrix(module):
            found.setdefault(group_of(name), []).append(module)
    return found


def logits_of(model, ids) -> np.ndarray:
    return predict(TorchPredictor(model, "cpu", "fp32", torch.get_num_threads()), ids, batch_size=64)


def weights_of(parts: dict[str, list[torch.nn.Module]]) -> dict[torch.nn.Module, torch.Tensor]:
    """The weights of every group's modules as they are now."""
    return {module: module.weight.data for modules in parts.values() for module in modules}


def set_bits(modules, bits: int | None, originals) -> None:
    """Rounds the modules' weights to `bits`, or puts the originals back."""
    for module in modules:
        weight = originals[module]
        module.weight.data = weight if bits is None else torch.from_numpy(quantize(weight, bits).dense())


def sensitivity(model, ids, labels) -> list[dict]:
    """One row per group and bit width: f1 and rms logit error on validation, with only that group quantized."""
    from tqdm import tqdm

    parts = groups(model)
    originals = weights_of(parts)
    reference = logits_of(model, ids)
    rows = [{"group": "none", "bits": 32, "bytes_saved": 0, "f1": quality(reference, labels)["f1"], "rms_error": 0.0}]
    for group, modules in tqdm(parts.items(), desc="sensitivity", mininterval=5):
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
    return rows


def choose_bits(model, ids, labels, rows: list[dict], tolerance: float) -> dict[str, int]:
    """Bits per group: 8 everywhere, then 4 for one group after the other, least error per byte saved first.

    A group keeps 4 bits if validation F1 then stays within `tolerance` points of the all-8-bit model's; else it goes
    back to 8, and the next is tried.
    """
    parts = groups(model)
    originals = weights_of(parts)
    four = {row["group"]: row["rms_error"] ** 2 / row["bytes_saved"] for row in rows if row["bits"] == 4}
    chosen = dict.fromkeys(parts, 8)
    for modules in parts.values():
        set_bits(modules, 8, originals)
    floor = quality(logits_of(model, ids), labels)["f1"] - tolerance / 100
    for group in sorted(four, key=four.get):
        set_bits(parts[group], 4, originals)
        if quality(logits_of(model, ids), labels)["f1"] >= floor:
            chosen[group] = 4
        else:
            set_bits(parts[group], 8, originals)
    for modules in parts.values():
        set_bits(modules, None, originals)
    return chosen
