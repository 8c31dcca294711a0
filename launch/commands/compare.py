"""Compare probes: their scores with intervals, and which differences are more than chance.

    python -m launch compare runs/a/results.json runs/b/results.json
    python -m launch compare runs/a runs/b runs/c --features encoder 'random encoder' --heads linear
    python -m launch compare runs/a                              the kinds of features of one probe with each other

Two results are compared sample by sample where they answered the same ones with the same head: the exact McNemar test
for top-1 (a paired permutation test for values), the 95 % interval of the difference by a bootstrap over the samples,
and Holm's correction for the number of comparisons.
"""

import argparse

from launch.studies.compare import choose_entries, compare, lay_out_pairs, lay_out_scores
from probes.results import read_results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `compare`."""
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="results.json of a probe, or its folder")
    parser.add_argument(
        "--features", nargs="+", metavar="NAME", help="kinds of features (default: encoder; of a single result all)"
    )
    parser.add_argument("--heads", nargs="+", metavar="NAME", help="heads (default: all)")
    parser.add_argument(
        "--common", action="store_true", help="compare on the samples that both have, where their sets differ"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the table, then the differences. ValueError where nothing can be compared."""
    documents = [read_results(path) for path in arguments.results]
    entries = choose_entries(documents, arguments.features, arguments.heads)
    print(lay_out_scores(entries))
    pairs, refused = compare(entries, arguments.common)
    if refused and not pairs:
        raise ValueError("; ".join(refused))
    print()
    print(lay_out_pairs(pairs) if pairs else "There is no pair of results with the same head to compare.")
    for words in refused:
        print(f"Not compared: {words}")
