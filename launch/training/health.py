"""Monitoring of a run as Lightning callbacks: collapse and speed gauges, warnings, pictures and an online probe.

docs/health.md explains what each of them shows and what to do when it looks wrong.
"""

from pytorch_lightning.callbacks import Callback

from data.loading.loader import DataConfig
from launch.training.config import HealthConfig
from launch.training.watchers.collapse import CollapseReader
from launch.training.watchers.sketches import PictureReader
from launch.training.watchers.skips import SkipAlarm
from launch.training.watchers.speed import Speed
from launch.training.watchers.watch import Reader, Watch
from probes.online import OnlineProbe


def watchers(config: HealthConfig, data: DataConfig, batch: int) -> list[Callback]:
    """The callbacks of this config; `data` defines how clips are cut, `batch` is the number of clips per device."""
    readers: list[Reader] = [CollapseReader(config.every, config.min_rank, config.min_spread, config.max_collapsed)]
    if config.pictures_every is not None:
        readers.append(PictureReader(config.pictures_every))
    found: list[Callback] = [SkipAlarm(config.max_skips), Watch(readers)]
    if config.probe_train and config.probe_test:
        found.append(
            OnlineProbe(config.probe_train, config.probe_test, data, batch, config.probe_every, config.probe_clips or 0)
        )
    return [
        *found,
        Speed(config.matrix_tflops or 0.0, data.count_workers(), mixed=data.images is not None),
    ]  # last, so that the time of the others does not count as waiting for data
