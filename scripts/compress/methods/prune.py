"""Pruning: zeros in the encoder's matrices, or whole heads and neurons removed."""

from compress.engines.pytorch import load_model
from compress.errors import UserError
from compress.methods.criteria import magnitude
from compress.methods.made import Context, Made, made
from compress.methods.masks import GradualPruning, global_masks, set_zeros, sparsity_of, two_of_four_masks
from compress.methods.networks import encoder_matrices
from compress.methods.teaching import teach, tokenized
from compress.methods.units import choose_heads, remove_units, swap_units, tune_units, unit_gradients, unit_importance
from compress.storage.packed import Sparse, write_packed
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorWithPadding


def prune(variant, context: Context) -> Made:
    """Single weights set to zero; stored as bitmask and values, and dense again when loaded."""
    model = load_model(context.parent)
    weights = encoder_matrices(model)
    if variant.training is None:
        scores = magnitude(weights, None)
        masks = two_of_four_masks(scores) if variant.pattern == "2:4" else global_masks(scores, variant.sparsity)
        set_zeros(weights, masks)
        seconds = None
    else:
        schedule = GradualPruning(model, variant.criterion, sparsity_of(weights), variant.sparsity, variant.pattern)
        seconds = teach(model, variant, context, callbacks=[schedule])
    sparse = {name: Sparse(weight.detach().cpu().numpy()) for name, weight in weights.items()}
    details = {"sparsity": sparsity_of(weights)}
    return made(model, lambda folder: write_packed(model, folder, sparse), train_seconds=seconds, details=details)


def structured(variant, context: Context) -> Made:
    """Whole heads and FFN neurons removed, the least important first; the result is a smaller network.

    Raises UserError for a parent that has lost heads already, or has fewer neurons than shall be left.
    """
    model = load_model(context.parent)
    if model.config.pruned_heads:
        raise UserError("structured: the parent has lost heads already; remove them all in one variant")
    before = sum(weight.numel() for weight in encoder_matrices(model).values())
    batches = ranking_batches(variant, context)
    gradients = list(unit_gradients(model, batches))
    heads, neurons = unit_importance(gradients)
    keep_heads = max(len(heads), round(variant.heads * heads.numel()))
    if variant.intermediate_size > neurons.shape[1]:
        raise UserError(f"intermediate_size {variant.intermediate_size} is more than the parent's {neurons.shape[1]}")
    pruned, kept = choose_heads(heads, keep_heads), neurons.topk(variant.intermediate_size, dim=1).indices
    if variant.tuned:
        pruned, kept = swap_units(gradients, pruned, kept)
    remove_units(model, pruned, kept)
    if variant.tuned:
        tune_units(model, load_model(context.parent), batches)
    removed = 1 - sum(weight.numel() for weight in encoder_matrices(model).values()) / before
    seconds = teach(model, variant, context)
    details = {"encoder_removed": removed, "heads_left": [heads.shape[1] - len(gone) for gone in pruned.values()]}
    return made(model, model.save_pretrained, train_seconds=seconds, details=details)


def ranking_batches(variant, context: Context) -> DataLoader:
    """Padded batches of the first training sentences, to rank and tune heads and neurons."""
    tokenizer = AutoTokenizer.from_pretrained(context.parent)
    split = context.splits["train"].select(range(min(variant.sentences, len(context.splits["train"]))))
    rows = tokenized(split["text"], split["label"], tokenizer, context.profile.data.max_length)
    return DataLoader(rows.to_list(), 32, collate_fn=DataCollatorWithPadding(tokenizer))
