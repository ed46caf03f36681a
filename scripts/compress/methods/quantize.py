"""Quantization in PyTorch: int8, torchao, 16-bit weights, mixed 8 and 4 bits, quantization-aware training."""

import time

import numpy as np
import torch
from compress.engines.int8 import dynamic_int8
from compress.engines.pytorch import SAVED, TORCHAO_FILE, import_torchao, load_model
from compress.errors import Skip
from compress.methods.integers import (
    FakeQuantizedRows,
    int8_weights,
    quantize_weight,
    start_quantization_aware,
    stop_quantization_aware,
)
from compress.methods.made import Context, Made, made
from compress.methods.networks import is_matrix
from compress.methods.sensitivity import choose_bits, group_of, sensitivity
from compress.methods.teaching import sentences, teach
from compress.storage.packed import INT8, write_packed
from torch import nn

SLOWDOWN = 10  # against fp32: a slower model would take half an hour to measure, without further insight
SLOW_SECONDS = 0.5  # for a batch; a tiny model may be slowed down without taking long


def int8_dynamic(variant, context: Context) -> Made:
    """Linear weights (and embedding tables) as int8; the loader rebuilds torch's int8 modules from the integers."""
    model = load_model(context.parent)
    return packed_int8(model, int8_weights(model, variant.per_channel, variant.embeddings))


def packed_int8(model: nn.Module, encoded: dict, **about) -> Made:
    """A Made whose `encoded` weights are stored as integers and run in int8."""
    return made(model, lambda folder: write_packed(model, folder, encoded, execution=INT8), **about)


def int8_saved(variant, context: Context) -> Made:
    """torch's own dynamic int8, saved by torch.save as in the course; not coded, so that its bytes compare."""
    model = load_model(context.parent)

    def write(folder):
        model.config.save_pretrained(folder)
        torch.save(dynamic_int8(model).state_dict(), folder / SAVED)

    return made(model, write, backend="torch-int8-saved")


def torchao(variant, context: Context) -> Made:
    """A quantization scheme of torchao; raises Skip if it does not run, changes nothing, or has no fast kernel here."""
    quantization = import_torchao()
    model = load_model(context.parent)
    schemes = {
        "int8-weight-only": quantization.Int8WeightOnlyConfig,
        "int8-dynamic": quantization.Int8DynamicActivationInt8WeightConfig,
        "int4-weight-only": quantization.Int4WeightOnlyConfig,
    }

    def write(folder):
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / TORCHAO_FILE)

    counted = made(model, write)  # before the weights become torchao's own kind of tensor
    before = batch_seconds(model)
    try:
        quantization.quantize_(model, schemes[variant.scheme]())
        after = batch_seconds(model)
    except (ImportError, NotImplementedError, RuntimeError) as error:
        raise Skip(f"torchao {variant.scheme} does not run on this CPU with these versions: {error}") from error
    if all(type(module.weight) is nn.Parameter for module in model.modules() if isinstance(module, nn.Linear)):
        raise Skip(f"torchao {variant.scheme} leaves every matrix of this size unchanged")
    if after > max(SLOWDOWN * before, SLOW_SECONDS):
        seconds = f"{after:.1f} s for a batch of 16 sentences against {before:.2f} s in fp32"
        raise Skip(f"torchao {variant.scheme} has no fast kernel for this CPU: {seconds}")
    return counted


def batch_seconds(model: nn.Module) -> float:
    """Seconds for one batch of 16 sentences of 32 pieces, the second of two."""
    ids = torch.full((16, 32), 100)
    with torch.inference_mode():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
        started = time.perf_counter()
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return time.perf_counter() - started


def cast(variant, context: Context) -> Made:
    """Weights stored in 16 bits; the config asks for float32 arithmetic, since few CPUs multiply 16-bit floats."""
    model = load_model(context.parent).to(getattr(torch, variant.dtype))

    def write(folder):
        model.save_pretrained(folder)
        model.config.dtype = "float32"  # the type that the ordinary loader converts the weights to
        model.config.save_pretrained(folder)

    return made(model, write)


def mixed_precision(variant, context: Context) -> Made:
    """8 or 4 bits per group of tensors, chosen by sensitivity on validation with float activations."""
    model = load_model(context.parent)
    ids, labels = sentences(context, "validation"), np.array(context.splits["validation"]["label"])
    rows = sensitivity(model, ids, labels)
    chosen = choose_bits(model, ids, labels, rows, variant.tolerance)
    encoded = {
        f"{name}.weight": quantize_weight(module.weight, chosen[group_of(name)])
        for name, module in model.named_modules()
        if is_matrix(module)
    }
    return packed_int8(model, encoded, details={"sensitivity": rows, "bits": chosen})


def qat(variant, context: Context) -> Made:
    """Quantization-aware training with the baseline as teacher."""
    model = load_model(context.parent)
    hooks = start_quantization_aware(model, lambda module: FakeQuantizedRows(module.weight, variant.bits))
    seconds = teach(model, variant, context)
    encoded = stop_quantization_aware(model, hooks)
    return packed_int8(model, encoded, train_seconds=seconds)
