"""The report of a probe: a self-contained HTML page, and curves for TensorBoard.

The page is built from results.json and predictions.csv; the caller may supply a function that returns example clips.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from data.decode import DecodeError
from data.loading.loader import EvalLoader, Views
from data.loading.workers import ClipReader
from launch.reports.moving import embed_clip
from launch.reports.page import Section, lay_out_table, result_table, show_score, show_share, write_report
from launch.reports.pictures import draw_confusion, embed
from launch.reports.probe_pictures import draw_shares, draw_values
from probes.evaluate import Result
from probes.results import Document, Predictions, read_predictions, read_results

REPORT = "report.html"
EXAMPLES = 6  # number of best and of worst examples shown
LISTED = 20  # classes or missing samples listed individually

Show = Callable[[Sequence[str]], Mapping[str, Tensor]]  # keys -> clips uint8 [T, H, W, 3] of the readable ones


def write_probe_report(folder: Path, show: Show | None = None) -> Path:
    """Write report.html next to the results.json in `folder`; `show` returns the clips of its examples."""
    document = read_results(folder)
    predictions = read_predictions(document)
    chosen = choose_row(document.rows)
    said = predictions[chosen["features"], chosen["head"]]
    of = f"{chosen['head']} on {chosen['features']}"
    sections = [
        Section("What was probed", "", _describe(document)),
        Section("Scores", _score_text(document), result_table(document.rows) + _all_scores(document)),
    ]
    if any(row["shares"] for row in document.rows):
        chance = 1 / len(document.classes) if document.classes else None
        picture = embed(draw_shares(document.rows, chance), "score against the fraction of labels", wide=True)
        text = (
            "Heads trained on a fraction of the labels of every class; dots are seeds, bands the 95 % interval of "
            "their mean."
        )
        sections.append(Section("With fewer labels", text, picture + _share_lines(document)))
    if document.classes:
        picture = embed(draw_confusion(chosen["confusion"], document.classes), "confusion matrix", wide=True)
        text = f"{of}: rows are true classes, columns predictions, in per cent of the row."
        sections.append(Section("Confusion matrix", text, picture))
        sections.append(
            Section("Per-class accuracy", f"{of}, with Wilson intervals.", _classes(chosen, document.classes))
        )
    else:
        values = ([float(text) for text in texts] for texts in (said.labels, said.predicted))
        text = f"{of}: predicted against true value of each sample."
        sections.append(Section("Values", text, embed(draw_values(*values), "predicted against true values")))
    sections.append(Section("Examples", _example_text(of, bool(document.classes)), _examples(said, show)))
    sections.append(Section("Missing", "", _missing(document)))
    config = document.config
    lead = f"{config.get('encoder', '')} on {config.get('test', '')}: {chosen['samples']} samples, frozen weights."
    path = folder / REPORT
    write_report(path, "Probe of a frozen encoder", lead, sections)
    return path


def write_scalars(folder: Path, results: Sequence[Result]) -> None:
    """Write the scores as TensorBoard scalars to `folder`/tensorboard.

    In a few-shot curve the step is the fraction of labels in tenths of a per cent, because steps are integers.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for result in results:
            row, name = result.as_dict(), f"{result.features}/{result.head}"
            for measure in ("top1", "top5", "mean_class", "mae", "r2"):
                if measure in row:
                    writer.add_scalar(f"probe/{name}/{measure}", row[measure], 0)
            for point in result.shares:
                step = round(1000 * point.share)
                writer.add_scalar(f"shares/{name}", point.as_dict()["mean"], step)


def clips_of(loader: EvalLoader) -> Show:
    """A function that returns the middle clips of samples of the loader's set, leaving out unreadable ones."""

    def show(keys: Sequence[str]) -> dict[str, Tensor]:
        reader = ClipReader(loader.config, loader.manifest)
        wanted, found = set(keys), {}
        for shard, entry in enumerate(loader.manifest.shards):
            for index in range(entry.samples):
                key = reader.shards.key(shard, index)
                if key not in wanted:
                    continue
                wanted.remove(key)
                try:
                    found[key] = reader.evaluate(reader.shards.read(shard, index), Views()).pixels[0]
                except DecodeError:
                    continue
            if not wanted:
                break
        reader.shards.close()
        return found

    return show


def choose_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result shown in detail: the encoder's (else the first features') head that is best on held-out samples."""
    first = "encoder" if any(row["features"] == "encoder" for row in rows) else rows[0]["features"]
    own = [row for row in rows if row["features"] == first]
    tried = [row for row in own if "held_out" in row["choice"]] or own
    sign = 1 if "top1" in tried[0] else -1  # accuracy: higher is better; error: lower is better
    return max(tried, key=lambda row: sign * row["choice"].get("held_out", 0.0))


def _describe(document: Document) -> str:
    config, first = document.config, document.rows[0]
    views, heads, data = (config.get(name, {}) for name in ("views", "heads", "data"))
    lines = [
        ("encoder", config.get("encoder", "")),
        ("training set", config.get("train", "")),
        ("test set", f"{config.get('test', '')}: {first['samples']} samples, {first['missing']} missing"),
        ("classes", f"{len(document.classes)}" if document.classes else "none: regression"),
        ("views", f"{views.get('segments', 1)} in time, {views.get('crops', 1)} in space"),
        (
            "frames",
            f"{data.get('fps')} per second"
            if data.get("fps")
            else f"every {data['stride']}th"
            if data.get("stride", 1) > 1
            else "all",
        ),
        ("heads selected on", _describe_choice(heads)),
    ]
    cells = "".join(f"<dt>{name}</dt><dd>{html.escape(str(value))}</dd>" for name, value in lines)
    return f"<dl>{cells}</dl>"


def _describe_choice(heads: Mapping[str, Any]) -> str:
    if heads.get("folds"):
        return f"{heads['folds']} folds of the training samples"
    return f"{100 * heads.get('held_out', 0.2):g} % of the training samples, held out"


def _score_text(document: Document) -> str:
    if document.task == "regression":
        return "Mean absolute error on the whole test set, with its 95 % bootstrap interval."
    chance = f"{100 / len(document.classes):.1f} %"
    return f"Top-1 accuracy on the whole test set, with its 95 % Wilson interval. Chance is {chance}."


def _all_scores(document: Document) -> str:
    lines = []
    for row in document.rows:
        name = [html.escape(row["features"]), row["head"]]
        if document.classes:
            cells = [
                show_score(row),
                show_share(row["top5"], row["wilson"]["top5"]),
                show_share(row["mean_class"], row["bootstrap"]["mean_class"]),
            ]
        else:
            low, high = row["bootstrap"]["r2"]
            cells = [show_score(row), f"{row['r2']:.3f} <span>{low:.3f} to {high:.3f}</span>"]
        choice = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in row["choice"].items())
        seeds = " ".join(f"{100 * value:.1f}" if document.classes else f"{value:.4g}" for value in row["seeds"])
        lines.append([*name, *cells, choice, seeds or "-"])
    measures = ("top-1", "top-5", "mean per-class accuracy") if document.classes else ("mean absolute error", "R2")
    table = lay_out_table(("features", "head", *measures, "selected", "each seed"), lines)
    return f"<details><summary>All measures</summary>{table}</details>"


def _share_lines(document: Document) -> str:
    shares = sorted({point["share"] for row in document.rows for point in row["shares"]})
    lines = []
    for row in document.rows:
        cells = {}
        for point in row["shares"]:
            interval = (point.get("low", point["mean"]), point.get("high", point["mean"]))
            has_interval = document.classes and interval[1] - interval[0] > 1e-9
            size, unit = (100, " %") if document.classes else (1, "")
            mean = f"{size * point['mean']:.3g}{unit}"
            shown = show_share(point["mean"], interval) if has_interval else mean
            cells[point["share"]] = f"{shown} <span>({point['samples']} labels)</span>"
        lines.append([html.escape(row["features"]), row["head"], *(cells.get(share, "-") for share in shares)])
    return lay_out_table(("features", "head", *(f"{100 * share:g} %" for share in shares)), lines)


def _classes(row: Mapping[str, Any], names: Sequence[str]) -> str:
    def mistaken(number: int) -> str:
        others = [(count, other) for other, count in enumerate(row["confusion"][number]) if other != number and count]
        if not others:
            return "-"
        count, other = max(others)
        share = 100 * count / sum(row["confusion"][number])
        return f"{html.escape(names[other])} <span>{share:.0f} %</span>"

    ordered = sorted(row["per_class"], key=lambda entry: entry["accuracy"])
    lines = [
        [
            html.escape(names[entry["class"]]),
            str(entry["samples"]),
            show_share(entry["accuracy"], (entry["low"], entry["high"])),
            mistaken(entry["class"]),
        ]
        for entry in ordered
    ]
    header = ("class, worst first", "samples", "accuracy", "most often confused with")
    table = lay_out_table(header, lines[:LISTED])
    if len(lines) <= LISTED:
        return table
    return table + f"<details><summary>all {len(lines)}</summary>{lay_out_table(header, lines)}</details>"


def _example_text(of: str, has_classes: bool) -> str:
    criterion = "predicted probability of the true class" if has_classes else "absolute error"
    return f"{of}: samples of the test set ordered by {criterion}."


def _examples(said: Predictions, show: Show | None) -> str:
    if said.ranks:
        quality = said.probabilities
        told = [f"{100 * value:.1f} % for the true class" for value in quality]
    else:
        pairs = zip(said.labels, said.predicted, strict=True)
        quality = [-abs(float(truth) - float(answer)) for truth, answer in pairs]
        told = [f"off by {-value:.4g}" for value in quality]
    order = sorted(range(len(quality)), key=lambda number: quality[number])
    groups = {"Worst": order[:EXAMPLES], "Best": order[::-1][: min(EXAMPLES, len(order) - EXAMPLES)]}
    clips = show([said.keys[number] for group in groups.values() for number in group]) if show else {}
    body = ""
    for title, group in groups.items():
        figures = []
        for number in group:
            key = said.keys[number]
            picture = embed_clip(clips[key], said.labels[number]) if key in clips else ""
            text = f"{said.labels[number]}, predicted {said.predicted[number]}: {told[number]}"
            caption = f"{html.escape(text)} <span>{html.escape(key)}</span>"
            figures.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
        body += f'<h3>{title}</h3><div class="thumbs">{"".join(figures)}</div>' if figures else ""
    return body


def _missing(document: Document) -> str:
    if not document.missing:
        return "<p>Every sample of the test set was read and evaluated.</p>"
    lines = []
    for reason, keys in document.missing.items():
        more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
        lines.append([html.escape(reason), str(len(keys)), html.escape(", ".join(keys[:LISTED])) + more])
    return "<p>These samples could not be read and are not part of any score.</p>" + lay_out_table(
        ("reason", "samples", "keys"), lines
    )
