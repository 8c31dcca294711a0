"""What watches a run: gauges of collapse and speed, warnings, pictures and an online probe, as Lightning callbacks.

docs/health.md says what each of them shows and what to do when it goes wrong.
"""

from dataclasses import dataclass

from pytorch_lightning.callbacks import Callback

from data.loader import DataConfig
from launch.watchers.collapse import CollapseReader
from launch.watchers.sketches import PictureReader
from launch.watchers.skips import SkipAlarm
from launch.watchers.speed import Speed
from launch.watchers.watch import Reader, Watch
from probes.online import OnlineProbe


@dataclass(frozen=True)
class HealthConfig:
    """What a run watches while it trains; gauges and pictures also after the first and the last step."""

    every: int = 100  # optimiser steps between two readings of the gauges
    min_rank: float = 0.05  # effective rank under which a collapse is announced, as a share of encoder.width; 0: never
    min_spread: float = 0.05  # spread across clips under which a collapse is announced; 0: never
    max_skips: int = 10  # updates skipped in a row before the run stops
    pictures_every: int = 1000  # optimiser steps between two sets of pictures; 0: none
    probe_every: int = 5000  # optimiser steps between two online probes
    probe_train: str = ""  # folder of labelled shards that the probe learns from; none: no probe
    probe_test: str = ""  # folder of labelled shards on which it is measured
    probe_clips: int = 1000  # of each of the two sets, chosen once at random; 0: all
    matrix_tflops: float = 0.0  # what a device could do, for speed/utilisation; 0: measured at the start of the run

    def __post_init__(self) -> None:
        for name in ("every", "probe_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"health.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_skips", "pictures_every", "probe_clips", "matrix_tflops"):
            if getattr(self, name) < 0:
                raise ValueError(f"health.{name} must be at least 0, got {getattr(self, name)}")
        for name in ("min_rank", "min_spread"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"health.{name} must lie in [0, 1), got {getattr(self, name)}")
        if bool(self.probe_train) != bool(self.probe_test):
            raise ValueError(
                f"health.probe_train and health.probe_test must be given together, got {self.probe_train!r} and "
                f"{self.probe_test!r}"
            )


def watchers(config: HealthConfig, data: DataConfig, batch: int) -> list[Callback]:
    """The callbacks that the config asks for; `data` says how clips are cut, `batch` how many fit on a device."""
    readers: list[Reader] = [CollapseReader(config.every, config.min_rank, config.min_spread)]
    if config.pictures_every:
        readers.append(PictureReader(config.pictures_every))
    found: list[Callback] = [SkipAlarm(config.max_skips), Watch(readers)]
    if config.probe_train:
        found.append(
            OnlineProbe(config.probe_train, config.probe_test, data, batch, config.probe_every, config.probe_clips)
        )
    return [
        *found,
        Speed(config.matrix_tflops, data.count_workers()),
    ]  # last: what the others take is no waiting for data
