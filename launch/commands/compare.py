"""Compare probe results: scores with confidence intervals, and which differences are significant.

    vjepa compare runs/a/results.json runs/b/results.json
    vjepa compare runs/a runs/b runs/c --features encoder 'random encoder' --heads linear
    vjepa compare runs/a                              compare the feature types of one probe

Results with the same head on the same samples are compared in pairs: the exact McNemar test for top-1 (a paired
permutation test for regression), a 95 % bootstrap interval of the difference over samples, and Holm's correction for
multiple comparisons.
"""

import argparse

from launch.studies.compare import choose_entries, compare, lay_out_pairs, lay_out_scores
from probes.results import read_results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `compare`."""
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="results.json of a probe, or its folder")
    parser.add_argument(
        "--features", nargs="+", metavar="NAME", help="feature types (default: encoder; for a single result, all)"
    )
    parser.add_argument("--heads", nargs="+", metavar="NAME", help="heads (default: all)")
    parser.add_argument(
        "--common", action="store_true", help="where the test sets differ, compare on the samples they share"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the scores, then the differences. ValueError if nothing can be compared."""
    documents = [read_results(path) for path in arguments.results]
    entries = choose_entries(documents, arguments.features, arguments.heads)
    print(lay_out_scores(entries))
    pairs, refused = compare(entries, arguments.common)
    if refused and not pairs:
        raise ValueError("; ".join(refused))
    print()
    print(lay_out_pairs(pairs) if pairs else "There is no pair of results with the same head to compare.")
    for reason in refused:
        print(f"Not compared: {reason}")
