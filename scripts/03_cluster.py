"""HW2, weight clustering: k shared values per matrix, trained or not; pruned and clustered (Deep Compression).

Reads build/<profile>/data/ and the models of 01_finetune.py and 02_quantize_prune.py; writes models/, predictions/
and records/ beside them. A killed run goes on where it stopped; what is finished and unchanged is kept.
Example: python scripts/03_cluster.py --profile minilm --only cluster-16-tuned
"""

import argparse

from compress.cli import main_guard, stage_parser


def cluster(variant, context):
    """k-means of every matrix; with training, its centroids then learn from the baseline's answers."""
    from compress.engines.pytorch import load_model
    from compress.methods.cluster import choose_sizes, start_clustering

    model = load_model(context.parent)
    start_clustering(model, choose_sizes(model, variant.k), rate=variant.rate)
    return clustered(model, variant, context)


def clustered(model, variant, context, seconds_before=0.0, **details):
    """The Made of a model whose codebooks are in place: trained, if the variant asks for it, and stored as codes."""
    from compress.engines.pytorch import write_packed
    from compress.methods.quantize import fix_weights
    from compress.methods.training import teach
    from compress.stage import made
    from compress.storage.coding import entropy_bytes

    seconds = teach(model, variant, context)
    encoded = fix_weights(model)
    # What a code that is fixed for a whole matrix needs at least; one that adapts block by block can need less.
    details["entropy_bytes"] = sum(entropy_bytes(value.codes) for value in encoded.values())
    details["codebook_bytes"] = sum(value.codebook.nbytes for value in encoded.values())
    seconds = None if seconds is None else seconds + seconds_before
    return made(model, lambda folder: write_packed(model, folder, encoded), train_seconds=seconds, details=details)


def deep_compression(variant, context):
    """Prune, cluster, entropy-code (Han et al., ICLR 2016), in two trainings.

    First the pruned parent gets used to embeddings of few values, its zeros staying zero; then its nonzeros share
    k - 1 trained centroids (k where nothing was pruned).
    """
    from dataclasses import replace

    from compress.engines.pytorch import load_model
    from compress.methods.cluster import choose_sizes, start_clustering
    from compress.methods.prune import encoder_matrices, gradual_pruning, sparsity_of
    from compress.methods.training import teach

    model = load_model(context.parent)
    pruned = encoder_matrices(model)
    sparsity = sparsity_of(pruned)
    sizes = choose_sizes(model, variant.k, variant.embedding_k)
    first = {name: size for name, size in sizes.items() if "embeddings" in name}
    start_clustering(model, first, rate=variant.rate)
    keep_zeros = gradual_pruning(model, "magnitude", sparsity, sparsity, "unstructured")
    adapting = variant.model_copy(update={"training": variant.adaptation})
    work = replace(context, work=context.work / "adaptation")
    seconds = teach(model, adapting, work, callbacks=[keep_zeros])
    rest = {name: size for name, size in sizes.items() if name not in first}
    start_clustering(model, rest, tuple(pruned) if sparsity else (), variant.rate)
    return clustered(model, variant, context, seconds, sparsity=sparsity)


def main(args: argparse.Namespace) -> int:
    from compress.stage import run_stage

    return run_stage(__file__, {"cluster": cluster, "deep-compression": deep_compression}, args)


if __name__ == "__main__":
    main_guard(main, stage_parser(__doc__))
