"""HW1, quantization and pruning: int8, 16-bit and mixed weights, quantization-aware training, sparse and smaller nets.

Reads build/<profile>/data/ and the models of 01_finetune.py; writes models/, predictions/ and records/ beside them.
A killed run goes on where it stopped; what is finished and unchanged is kept.
Example: python scripts/02_quantize_prune.py --profile minilm --only prune-magnitude-70
"""

import argparse

from compress.cli import main_guard, stage_parser


def int8_dynamic(variant, context):
    """Linear weights (and embedding tables) as int8; the loader rebuilds torch's int8 modules from the integers."""
    from compress.engines.pytorch import load_model
    from compress.methods.quantize import quantized

    model = load_model(context.parent)
    return packed_int8(model, quantized(model, variant.per_channel, variant.embeddings))


def packed_int8(model, encoded, **about):
    """A Made whose `encoded` weights are stored as integers and run on int8."""
    from compress.engines.pytorch import INT8, write_packed
    from compress.stage import made

    return made(model, lambda folder: write_packed(model, folder, encoded, execution=INT8), **about)


def int8_saved(variant, context):
    """torch's own dynamic int8, saved as the course saved it; no coding, so that bytes compare."""
    import torch
    from compress.engines.predictor import SAVED, dynamic_int8
    from compress.engines.pytorch import load_model
    from compress.stage import made

    model = load_model(context.parent)

    def write(folder):
        model.config.save_pretrained(folder)
        torch.save(dynamic_int8(model).state_dict(), folder / SAVED)

    return made(model, write, backend="torch-int8-saved")


def torchao(variant, context):
    import torch
    from compress.engines.pytorch import TORCHAO_FILE, import_torchao, load_model
    from compress.errors import Skip
    from compress.stage import made
    from torch import nn

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
    except (ImportError, NotImplementedError, RuntimeError) as error:
        raise Skip(f"torchao {variant.scheme} does not run on this CPU with these versions: {error}") from error
    if all(type(module.weight) is nn.Parameter for module in model.modules() if isinstance(module, nn.Linear)):
        raise Skip(f"torchao {variant.scheme} leaves every matrix of this size as it is")
    after = batch_seconds(model)
    if after > 10 * before:  # measuring such a model would take half an hour and tell no more
        seconds = f"{after:.1f} s for a batch of 16 sentences against {before:.2f} s in fp32"
        raise Skip(f"torchao {variant.scheme} runs on this CPU, but takes {seconds}: no kernel for it")
    return counted


def batch_seconds(model) -> float:
    """Seconds for one batch of 16 sentences of 32 pieces, the second of two."""
    import time

    import torch

    ids = torch.full((16, 32), 100)
    with torch.inference_mode():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
        started = time.perf_counter()
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return time.perf_counter() - started


def cast(variant, context):
    """Weights stored in 16 bits; the config asks for float32 arithmetic, since few CPUs multiply 16-bit floats."""
    import torch
    from compress.engines.pytorch import load_model
    from compress.stage import made

    model = load_model(context.parent).to(getattr(torch, variant.dtype))

    def write(folder):
        model.save_pretrained(folder)
        model.config.dtype = "float32"  # what the ordinary loader turns the weights into
        model.config.save_pretrained(folder)

    return made(model, write)


def mixed_precision(variant, context):
    import numpy as np
    from compress.engines.predictor import load_tokenizer, token_ids
    from compress.engines.pytorch import load_model
    from compress.methods.quantize import is_matrix, quantize
    from compress.methods.sensitivity import choose_bits, group_of, sensitivity

    model = load_model(context.parent)
    split = context.splits["validation"]
    tokenizer = load_tokenizer(context.parent, context.profile.data.max_length)
    ids = token_ids(tokenizer, split["text"])
    labels = np.array(split["label"])
    rows = sensitivity(model, ids, labels)
    chosen = choose_bits(model, ids, labels, rows, variant.tolerance)
    encoded = {
        f"{name}.weight": quantize(module.weight, chosen[group_of(name)])
        for name, module in model.named_modules()
        if is_matrix(module)
    }
    return packed_int8(model, encoded, details={"sensitivity": rows, "bits": chosen})


def qat(variant, context):
    from compress.engines.pytorch import load_model
    from compress.methods.quantize import start_quantization_aware, stop_quantization_aware
    from compress.methods.training import teach

    model = load_model(context.parent)
    hooks = start_quantization_aware(model, variant.bits)
    seconds = teach(model, variant, context)
    encoded = stop_quantization_aware(model, hooks)
    return packed_int8(model, encoded, train_seconds=seconds)


def prune(variant, context):
    """Zeros in the encoder's matrices; stored as bitmask and values, dense again when loaded."""
    from compress.engines.pytorch import load_model, write_packed
    from compress.methods.prune import (
        encoder_matrices,
        global_masks,
        gradual_pruning,
        magnitude,
        set_zeros,
        sparsity_of,
        two_of_four_masks,
    )
    from compress.methods.training import teach
    from compress.stage import made
    from compress.storage.packed import Sparse

    model = load_model(context.parent)
    weights = encoder_matrices(model)
    if variant.training is None:
        scores = magnitude(weights, None)
        masks = two_of_four_masks(scores) if variant.pattern == "2:4" else global_masks(scores, variant.sparsity)
        set_zeros(weights, masks)
        seconds = None
    else:
        schedule = gradual_pruning(model, variant.criterion, sparsity_of(weights), variant.sparsity, variant.pattern)
        seconds = teach(model, variant, context, callbacks=[schedule])
    sparse = {name: Sparse(weight.detach().cpu().numpy()) for name, weight in weights.items()}
    details = {"sparsity": sparsity_of(weights)}
    return made(model, lambda folder: write_packed(model, folder, sparse), train_seconds=seconds, details=details)


def structured(variant, context):
    """Whole heads and FFN neurons go, the least important on training sentences first; the ordinary loader reads it."""
    import torch
    from compress.engines.pytorch import load_model
    from compress.methods.prune import choose_heads, encoder_matrices, remove_units, unit_importance
    from compress.methods.training import teach, tokenized
    from compress.stage import made
    from transformers import AutoTokenizer, DataCollatorWithPadding

    model = load_model(context.parent)
    before = sum(weight.numel() for weight in encoder_matrices(model).values())
    tokenizer = AutoTokenizer.from_pretrained(context.parent)
    split = context.splits["train"].select(range(min(variant.sentences, len(context.splits["train"]))))
    rows = tokenized(split["text"], split["label"], tokenizer, context.profile.data.max_length)
    loader = torch.utils.data.DataLoader(rows.to_list(), 32, collate_fn=DataCollatorWithPadding(tokenizer))
    heads, neurons = unit_importance(model, loader)
    keep_heads = max(len(heads), round(variant.heads * heads.numel()))
    if variant.intermediate_size > neurons.shape[1]:
        raise ValueError(f"intermediate_size {variant.intermediate_size} is more than the {neurons.shape[1]} there are")
    pruned = choose_heads(heads, keep_heads)
    remove_units(model, pruned, neurons.topk(variant.intermediate_size, dim=1).indices)
    removed = 1 - sum(weight.numel() for weight in encoder_matrices(model).values()) / before
    seconds = teach(model, variant, context)
    details = {"encoder_removed": removed, "heads_left": [heads.shape[1] - len(gone) for gone in pruned.values()]}
    return made(model, model.save_pretrained, train_seconds=seconds, details=details)


def main(args: argparse.Namespace) -> int:
    from compress.stage import run_stage

    makers = {
        "int8-dynamic": int8_dynamic,
        "int8-saved": int8_saved,
        "torchao": torchao,
        "cast": cast,
        "mixed-precision": mixed_precision,
        "qat": qat,
        "prune": prune,
        "structured": structured,
    }
    return run_stage(__file__, makers, args)


if __name__ == "__main__":
    main_guard(main, stage_parser(__doc__))
