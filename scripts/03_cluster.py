"""HW2, weight clustering: k shared values per matrix, trained or not; pruned and clustered (Deep Compression).

Reads build/<profile>/data/ and the models of 01_finetune.py and 02_quantize_prune.py; writes models/, predictions/
and records/ beside them. A killed run goes on where it stopped; what is finished and unchanged is kept.
Example: python scripts/03_cluster.py --profile minilm --only cluster-16-tuned
"""

import argparse

from compress.cli import add_run_options, main_guard


def cluster(variant, context):
    """k-means of every matrix; with training, its centroids then learn from the baseline's answers."""
    from compress.cluster import choose_sizes, start_clustering
    from compress.model import load_model

    model = load_model(context.parent)
    start_clustering(model, choose_sizes(model, variant.k), rate=variant.rate)
    return clustered(model, variant, context)


def clustered(model, variant, context, **details):
    """The Made of a model whose codebooks are in place: trained, if the variant asks for it, and stored as codes."""
    from compress.cluster import stop_clustering
    from compress.model import write_packed
    from compress.packing import entropy_bytes
    from compress.stage import made
    from compress.training import teach

    seconds = teach(model, variant, context)
    encoded = stop_clustering(model)
    # What a code that is fixed for a whole matrix needs at least; one that adapts block by block can need less.
    details["entropy_bytes"] = sum(entropy_bytes(value.codes) for value in encoded.values())
    details["codebook_bytes"] = sum(value.codebook.nbytes for value in encoded.values())
    return made(model, lambda folder: write_packed(model, folder, encoded), train_seconds=seconds, details=details)


def deep_compression(variant, context):
    """A pruned parent's nonzeros share k - 1 trained centroids, its zeros stay zero: Han et al. (ICLR 2016)."""
    from compress.cluster import choose_sizes, start_clustering
    from compress.model import load_model
    from compress.prune import encoder_matrices, sparsity_of

    model = load_model(context.parent)
    pruned = encoder_matrices(model)
    sparsity = sparsity_of(pruned)
    start_clustering(model, choose_sizes(model, variant.k, variant.embedding_k), tuple(pruned), variant.rate)
    return clustered(model, variant, context, sparsity=sparsity)


def main(args: argparse.Namespace) -> int:
    from compress.stage import run_stage

    return run_stage(__file__, {"cluster": cluster, "deep-compression": deep_compression}, args)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_options(parser)
    main_guard(main, parser)
