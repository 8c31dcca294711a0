"""Index tar shards, so that a sample takes one positioned read, locally or by an http or s3 range request.

    vjepa index shards              a folder packed by an earlier version: adds NAME.tar.index beside each NAME.tar
    vjepa index video2dataset/      webdataset shards of other tools: measures every video once, writes a manifest

The tars themselves are only read. An index that is there and fits is kept, so the same command continues after an
interruption. `pack` writes the index files itself.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from data.packing.indexing import index_folder
from data.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `index`."""
    parser.add_argument("folder", metavar="SHARDS", type=Path, help="folder of tar files")
    parser.add_argument("--jobs", type=int, default=-1, help="processes that examine foreign videos (-1: one per core)")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds for one video")


def run(arguments: argparse.Namespace) -> None:
    """Write the index files and print what was found."""
    with tqdm(unit=" shards", dynamic_ncols=True, disable=None) as bar:

        def show(done: int, total: int, name: str) -> None:
            bar.total = total
            bar.set_postfix_str(name, refresh=False)
            bar.update(done - bar.n)

        report = index_folder(arguments.folder, arguments.jobs, arguments.timeout, show)
    print(f"{arguments.folder}: {report.samples} samples, {report.written} index files written, {report.kept} kept")
    if report.repeated:
        print(f"{report.repeated} keys occur in more than one shard; clips of such samples get the same random crops")
    if report.rejected:
        print(f"{len(report.rejected)} samples cannot be used, the manifest lists them; the first:")
        for rejection in report.rejected[:20]:
            print(printable(f"  {rejection.path}: {rejection.reason}"))
