"""Pack videos (a folder, a csv, a list or a pattern) into numbered tar shards with a manifest.

Killed at any point and run again with the same arguments, it continues after the last complete shard.
"""

import argparse
import dataclasses
from collections import Counter

from tqdm import tqdm

from data.packing.pack import PackConfig, PackReport, check_output, merge_parts, pack, plan_subsets
from data.packing.sources import Listing, list_sources
from data.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `pack`."""
    default = PackConfig()
    parser.add_argument("source", metavar="SOURCE", help="folder (subfolders are labels), csv, tsv, list or 'pattern'")
    parser.add_argument("output", metavar="OUTPUT", nargs="?", help="folder for the shards and manifest.json")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, write nothing")
    parser.add_argument("--shard-mb", type=float, default=default.shard_mb, metavar="MB", help="size of a shard (512)")
    parser.add_argument("--order", choices=("shuffled", "listed"), default=default.order, help="order in the shards")
    parser.add_argument("--strict", action="store_true", help="a rejected video is an error")
    parser.add_argument(
        "--val-fraction",
        type=float,
        default=0.0,
        metavar="F",
        help="hold out this fraction of the videos as OUTPUT/val",
    )
    parser.add_argument("--jobs", type=int, default=default.jobs, help="processes (-1: one per core; 0 is 1)")
    parser.add_argument("--timeout", type=float, default=default.timeout, metavar="S", help="seconds for one video")
    again = parser.add_argument_group("re-encoding (H.264, no audio); otherwise the files are packed unchanged")
    again.add_argument("--short-side", type=int, default=0, metavar="PIXELS", help="downscale to this short side")
    again.add_argument("--fps", type=float, default=0.0, help="new frame rate")
    again.add_argument("--crf", type=int, default=default.crf, help="quality, 0 (lossless) to 51 (20)")
    again.add_argument("--fast-decode", action="store_true", help="make larger files that decode faster")
    again.add_argument("--split", type=float, default=0.0, metavar="S", help="cut into clips of S seconds")
    again.add_argument("--repair", action="store_true", help="re-encode only videos that cannot be read frame by frame")
    parts = parser.add_argument_group("several machines")
    parts.add_argument("--part", default="", metavar="I/N", help="pack only slice I of N, such as 3/8")
    parts.add_argument("--merge", action="store_true", help="merge the parts: pack --merge OUTPUT")


def run(arguments: argparse.Namespace) -> None:
    """Pack, merge, or show what would be packed."""
    if arguments.merge:
        for merged in merge_parts(arguments.output or arguments.source):
            print(f"{merged.folder}: {merged.samples} samples in {len(merged.shards)} shards")
        return
    if not arguments.output:
        raise ValueError("OUTPUT is missing: vjepa pack SOURCE OUTPUT")
    names = [field.name for field in dataclasses.fields(PackConfig)]
    config = PackConfig(**{name: getattr(arguments, name) for name in names})
    if config.jobs == 0:
        config = dataclasses.replace(config, jobs=1)  # a broken video must never end the command
    if arguments.dry_run:
        _announce(list_sources(arguments.source), arguments, config)
        return
    with tqdm(unit=" videos", dynamic_ncols=True, disable=None) as bar:

        def show(done: int, total: int, samples: int, rejected: int) -> None:
            if bar.total != total or done < bar.n:
                bar.reset(total)
                bar.initial = done - 1  # videos packed by an earlier run must not count towards the rate
                bar.n = done - 1
            bar.set_postfix(samples=samples, rejected=rejected, refresh=False)
            bar.update(done - bar.n)

        report = pack(arguments.source, arguments.output, config, show)
    _conclude(report)


def _announce(listing: Listing, arguments: argparse.Namespace, config: PackConfig) -> None:
    check_output(arguments.source, arguments.output)
    labels = Counter(source.label for source in listing.sources if source.label is not None)
    print(f"{arguments.source}: {len(listing.sources)} videos, {len(listing.classes)} classes")
    if labels:
        print(printable("labels: " + ", ".join(f"{name} ({count})" for name, count in labels.most_common(10))))
    if listing.ignored:
        print(f"{listing.ignored} other files would be ignored")
    for name in listing.repeated[:10]:
        print(printable(f"listed more than once, packed once: {name}"))
    for subset, sources in plan_subsets(listing, config).items():
        part, parts = config.slice_of_all()
        count = len(sources) * (part + 1) // parts - len(sources) * part // parts
        print(f"would write {count} videos to {arguments.output}{'/' + subset if subset else ''}")
    print("videos would be " + ("re-encoded" if config.transcoding() else "packed unchanged"))


def _conclude(report: PackReport) -> None:
    print(
        f"{report.samples} samples, {report.seconds / 3600:.2f} hours, {report.bytes / 1e9:.3f} GB in "
        f"{report.shards} shards in {', '.join(report.folders)}"
    )
    if report.rejected:
        print(f"{len(report.rejected)} rejected:")
        for rejection in report.rejected[:20]:
            print(printable(f"  {rejection.path}: {rejection.reason}"))
        if len(report.rejected) > 20:
            print("  ... the full list is in manifest.json")
