"""HW2, weight clustering: k shared values per matrix, trained or not; pruned and clustered (Deep Compression).

Reads build/<profile>/data/ and the models of the parent and the baseline; writes the model and its record to
build/<profile>/seed<k>/<variant>/. An interrupted training resumes from its last checkpoint.
Example: .venv/bin/python scripts/03_cluster.py --profile minilm cluster-16-tuned
"""

import argparse

from compress.cli import build_parser, main_guard


def main(args: argparse.Namespace) -> int:
    from compress.graph.building import build
    from compress.methods.cluster import cluster, deep_compression

    return build(args, {"cluster": cluster, "deep-compression": deep_compression})


if __name__ == "__main__":
    main_guard(main, build_parser(__doc__))
