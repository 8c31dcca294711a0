"""From a folder of videos to a trained encoder and a report: what `vjepa start` does, step by step.

Each step is also a command of its own; `steps_as_commands` prints them.
"""

import json
import sys
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from data.files import write_json
from data.loading.batch import DataConfig
from data.manifest import Manifest
from data.packing.pack import PackConfig, pack
from data.packing.verify import draw_contact_sheet
from launch.config import load_config
from launch.config_files import CONFIGS
from launch.exchange.card import CardConfig
from launch.exchange.encoders import describe_run
from launch.exchange.export import export_origin, find_results, read_run
from launch.probing.probe import ProbeConfig, probe
from launch.reports.start_page import write_start_page
from launch.studies.survey import VAL_FRACTION, Choice, Survey
from launch.training.budget import within_budget
from launch.training.checkpoints import load_module
from launch.training.config import TrainConfig
from launch.training.rundir import hold_run
from launch.training.trainer import train
from probes.evaluate import Result

PROBE = CONFIGS / "probe" / "own.yaml"
NAME = "start.json"
FEW = 400  # below this many labelled videos heads are selected by cross-validation


@dataclass(frozen=True)
class Start:
    """One call of `vjepa start`: what it was asked for, what it found, what it chose."""

    source: str
    output: Path
    minutes: float
    seed: int
    survey: Survey
    choice: Choice
    overrides: tuple[str, ...] = ()  # the user's own, after those chosen

    @property
    def shards(self) -> dict[str, Path]:
        """Folders of shards: train, and val if there are labels."""
        folder = self.output / "shards"
        return {name: folder / name for name in ("train", "val")} if self.survey.labelled else {"train": folder}

    @cached_property
    def config(self) -> TrainConfig:
        """The config of the run; its length is what fits into the minutes."""
        config = load_config(TrainConfig, self.choice.config, [*self.choice.overrides, *self.overrides])
        run = replace(
            config.run, output=str(self.output / "run"), seed=self.seed, budget=f"{self.minutes:g}min", total_clips=None
        )
        return replace(config, data=replace(config.data, path=str(self.shards["train"])), run=run)

    @property
    def probe_overrides(self) -> list[str]:
        """Overrides of configs/probe/own.yaml: the cheap heads and baselines, clips sampled as in training."""
        data = self.config.data
        rate = f"data.fps={data.fps:g}" if data.fps else f"data.stride={data.stride}"
        return [
            f"encoder={self.output / 'run'}", f"train={self.shards['train']}", f"test={self.shards['val']}",
            f"output={self.output / 'probe'}", f"heads.seed={self.seed}", "heads.names=[linear,knn]",
            "baselines=[random,first_frame]", rate,
            *(["heads.folds=5"] if self.survey.videos < FEW else []),
        ]  # fmt: skip


def claim_output(start: Start) -> None:
    """Record the call in its output folder. ValueError if the folder holds anything but an unfinished equal call."""
    asked = {"source": str(Path(start.source).resolve()), "minutes": start.minutes, "seed": start.seed}
    asked["overrides"] = list(start.overrides)
    path = start.output / NAME
    if start.output.is_dir() and any(start.output.iterdir()):
        before = json.loads(path.read_text()) if path.is_file() else None
        if before != asked or (start.output / "report.html").is_file():
            state = "is finished" if before == asked else "holds something else"
            free = next(name for n in range(2, 10_000) if not (name := Path(f"{start.output}-{n}")).exists())
            raise ValueError(f"{start.output} {state}, and nothing is overwritten; give --output {free}")
        print(f"{start.output} holds the beginning of this: it continues there")
        return
    start.output.mkdir(parents=True, exist_ok=True)
    write_json(path, asked)


def prepare(start: Start) -> None:
    """Pack the videos, holding out some of every class if there are labels, and draw a contact sheet."""
    fraction = VAL_FRACTION if start.survey.labelled else 0.0
    report = pack(
        start.source,
        str(start.output / "shards"),
        PackConfig(short_side=start.choice.short_side, split=start.choice.split, val_fraction=fraction),
        lambda done, total, samples, rejected: show(f"packed {done} of {total} videos", done == total),
    )
    for rejection in report.rejected[:5]:
        print(f"left out: {rejection.path}: {rejection.reason}")
    sheet = start.output / "videos.png"
    draw_contact_sheet(Manifest.load(str(start.shards["train"]))).save(sheet)
    print(f"{report.samples} {'pieces' if start.choice.split else 'videos'} packed; contact sheet: {sheet}")


def pretrain(start: Start) -> float:
    """Train for the minutes given, or continue; returns the seconds it took."""
    with hold_run(start.output / "run", rank=0):
        config = within_budget(train, start.config, 1)
    begun = time.monotonic()
    train(config)
    return time.monotonic() - begun


def evaluate(start: Start) -> list[Result]:
    """Probe the exported encoder on the videos held out; empty without labels."""
    if not start.survey.labelled:
        return []
    return probe(load_config(ProbeConfig, PROBE, start.probe_overrides))


def finish(start: Start, results: list[Result], seconds: float) -> None:
    """Write the report and print how to use the encoder."""
    write_start_page(
        start.output, start.survey.describe(), start.choice.reasons, start.config, start.shards, results, seconds
    )
    print(f"\nReport: {start.output / 'report.html'}\n\nThe encoder in Python:\n\n{three_lines(start)}\n")
    print(f"The same, step by step:\n\n{steps_as_commands(start)}")


def export_encoder(start: Start) -> float:
    """Export the target encoder to the folder `encoder`; returns the largest difference after reloading.

    Its model card has the results of the probe, if there was one, and a picture.
    """
    run = Path(start.config.run.output)
    origin = describe_run(load_module(run), "target", str(run))
    origin = replace(origin, facts={**origin.facts, **read_run(run)})
    card = CardConfig(
        data=start.survey.describe().replace("\n", "; "), results=find_results(str(start.output / "probe"))
    )
    return export_origin(origin, start.output / "encoder", card=card, picture=True)


def three_lines(start: Start) -> str:
    """How to use the encoder in Python."""
    return f"""    import vjepa
    encoder = vjepa.load_encoder("{start.output / "encoder"}")
    features = encoder(vjepa.normalise(clips))  # {_shapes(start.config.data)}"""


def steps_as_commands(start: Start) -> str:
    """The commands that do the same one after another."""
    scaled = f" --short-side {start.choice.short_side}" if start.choice.short_side else ""
    scaled += f" --split {start.choice.split:g}" if start.choice.split else ""
    held = f" --val-fraction {VAL_FRACTION:g}" if start.survey.labelled else ""
    overrides = " ".join([*start.choice.overrides, *start.overrides])
    shards, run, encoder = start.output / "shards", start.output / "run", start.output / "encoder"
    lines = [
        f"vjepa pack {start.source} {shards}{held}{scaled}",
        f"vjepa inspect {start.shards['train']} --picture {start.output / 'videos.png'}",
        f"vjepa train {start.choice.config.stem} data.path={start.shards['train']} run.output={run} "
        f"run.budget={start.minutes:g}min run.seed={start.seed} {overrides}".rstrip(),
    ]
    if start.survey.labelled:
        lines.append(f"vjepa probe own {' '.join(start.probe_overrides)}")
    results = f" --results {start.output / 'probe' / 'results.json'}" if start.survey.labelled else ""
    lines.append(f"vjepa export {run} {encoder}{results}")
    return "\n".join(f"    {line}" for line in lines)


def show(text: str, last: bool) -> None:
    """A progress line that a terminal overwrites; a log gets only the last one."""
    if sys.stdout.isatty():
        print(f"\r{text}", end="\n" if last else "", flush=True)
    elif last:
        print(text)


def _shapes(data: DataConfig) -> str:
    return f"clips uint8 [B, {data.frames}, {data.crop}, {data.crop}, 3] -> [B, tokens, width]"
