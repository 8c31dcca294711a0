"""Evaluate a frozen encoder with linear, k-NN and attentive heads on packed, labelled videos or images.

    vjepa probe configs/probe/synthetic.yaml encoder=runs/demo/encoder
    torchrun --nproc-per-node 8 -m vjepa probe CONFIG ...        (or srun: all ranks encode, rank 0 fits the heads)

Heads are selected on a held-out part of the training set; the test set is evaluated once. `results.json` in the output
folder holds everything that is printed; the trained heads are stored next to it. Run again after an interruption, a
probe computes only the missing features and heads.
"""

import argparse

from launch.config import add_config_arguments, read_config
from launch.probing.probe import ProbeConfig, probe
from probes.evaluate import share_table, table
from probes.results import NAME


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `probe`."""
    add_config_arguments(parser, "configs/probe/")


def run(arguments: argparse.Namespace) -> None:
    """Run the probe of the config and print its results."""
    config = read_config(ProbeConfig, arguments)
    if config is None:
        return
    results = probe(config)
    if not results:
        return  # a rank other than 0, which only encoded
    print(table(results))
    if any(result.shares for result in results):
        print(f"\n{share_table(results)}")
    if results[0].missing:
        print(f"\n{results[0].missing} samples of {config.test} could not be read; {NAME} lists them")
    print(f"\nwritten to {config.output}/{NAME}")
