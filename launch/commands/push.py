"""Upload an exported encoder, with its model card, to the Hugging Face Hub.

    vjepa export runs/demo/run encoder --licence apache-2.0 --results runs/demo/probe/results.json
    vjepa push encoder OWNER/NAME

Afterwards anybody loads it with vjepa.load_encoder("hf://OWNER/NAME"), and every command that takes an encoder with
--encoder hf://OWNER/NAME. Needs the extra [hub] and a login (`hf auth login`, or HF_TOKEN).
"""

import argparse

from vjepa.formats.hub import push


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `push`."""
    parser.add_argument("folder", help="exported folder")
    parser.add_argument("repository", metavar="OWNER/NAME", help="made if it does not exist")
    parser.add_argument("--licence", default="", help="licence of the weights, such as apache-2.0, for the model card")
    parser.add_argument("--private", action="store_true", help="make the repository private, if it is made")


def run(arguments: argparse.Namespace) -> None:
    """Upload."""
    address = push(arguments.folder, arguments.repository, arguments.licence, arguments.private)
    name = arguments.repository.removeprefix("hf://")
    print(f'uploaded to {address}; to load it: vjepa.load_encoder("hf://{name}")')
