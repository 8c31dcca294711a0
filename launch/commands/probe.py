"""Measure a frozen encoder: linear, k-NN and attentive heads on packed, labelled videos or images.

    python -m launch probe configs/probe/synthetic.yaml encoder=runs/demo/encoder
    torchrun --nproc-per-node 8 -m launch probe CONFIG ...        (srun does as well: all ranks encode, rank 0 fits)

A head is chosen on a held-out part of the training set; the reported set is looked at once. `results.json` in the
output folder holds everything that is printed; the encoder's trained heads stand beside it. Started again after it was
stopped, a probe goes on with the features and heads that it lacks.
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
    """Probe as the config says."""
    config = read_config(ProbeConfig, arguments)
    if config is None:
        return
    results = probe(config)
    if not results:
        return  # a rank that helped
    print(table(results))
    if any(result.shares for result in results):
        print(f"\n{share_table(results)}")
    if results[0].missing:
        print(f"\n{results[0].missing} samples of {config.test} could not be read; {NAME} names them")
    print(f"\nwritten to {config.output}/{NAME}")
