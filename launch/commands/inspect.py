"""Summarise a packed data set; optionally verify every shard and draw a contact sheet."""

import argparse
from pathlib import Path

from tqdm import tqdm

from data.manifest import Manifest
from data.packing.verify import draw_contact_sheet, verify_shards
from data.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `inspect`."""
    parser.add_argument("folder", metavar="FOLDER", help="folder with manifest.json")
    parser.add_argument("--verify", action="store_true", help="check the checksums, decode samples of every shard")
    parser.add_argument("--samples", type=int, default=4, metavar="N", help="samples to decode per shard (4)")
    parser.add_argument("--picture", metavar="FILE.png", help="draw a contact sheet")
    parser.add_argument("--rejected", action="store_true", help="list all rejected videos")


def run(arguments: argparse.Namespace) -> None:
    """Print the table; ValueError if a check fails."""
    manifest = Manifest.load(arguments.folder)
    for name, value in describe(manifest):
        print(printable(f"{name:<12} {value}"))
    if arguments.rejected:
        for rejection in manifest.rejected:
            print(printable(f"  {rejection.path}: {rejection.reason}"))
    if arguments.picture:
        draw_contact_sheet(manifest).save(Path(arguments.picture))
        print(f"contact sheet in {arguments.picture}")
    if arguments.verify:
        _verify(manifest, arguments.samples)


def describe(manifest: Manifest) -> list[tuple[str, str]]:
    """The rows of the table."""
    totals = manifest.totals
    rows = [
        ("folder", manifest.folder),
        ("samples", f"{manifest.samples:,}"),
        ("shards", f"{len(manifest.shards):,} ({manifest.total_bytes / 1e9:.3f} GB)"),
    ]
    if "seconds" in totals:
        rows.append(
            ("length", f"{totals['seconds'] / 3600:.2f} hours, {totals['seconds'] / manifest.samples:.1f} s each")
        )
    for name, title in (("sizes", "sizes"), ("rates", "fps"), ("codecs", "codecs")):
        if name in totals:
            rows.append((title, _most_common(totals[name])))
    names = {str(number): name for number, name in enumerate(manifest.classes)}
    labels = {names.get(label, "no label"): count for label, count in totals.get("labels", {}).items()}
    rows.append(("classes", f"{len(manifest.classes)}" + (f": {_most_common(labels)}" if labels else "")))
    rows.append(("rejected", f"{len(manifest.rejected)}"))
    options = manifest.made.get("options", {})
    rows.append(("packed with", ", ".join(f"{name}={value}" for name, value in options.items()) or "not known"))
    rows.append(("fingerprint", manifest.fingerprint()))
    return rows


def _verify(manifest: Manifest, samples: int) -> None:
    with tqdm(total=len(manifest.shards), unit=" shards", dynamic_ncols=True) as bar:
        problems = verify_shards(manifest, samples, lambda done, total: bar.update(done - bar.n) and None)
    if problems:
        more = f"\n... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(f"{len(problems)} problems found:\n" + "\n".join(problems[:20]) + more)
    print(f"verified: {len(manifest.shards)} shards match the manifest")


def _most_common(counts: dict[str, int], shown: int = 6) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{name} ({count:,})" for name, count in ordered[:shown])
    return text + (f" and {len(ordered) - shown} more" if len(ordered) > shown else "")
