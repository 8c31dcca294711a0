"""What watches a run: gauges of collapse and speed, warnings, pictures and an online probe, as Lightning callbacks.

docs/health.md says what each of them shows and what to do when it goes wrong.
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
    """The callbacks that the config asks for; `data` says how clips are cut, `batch` how many fit on a device."""
    readers: list[Reader] = [CollapseReader(config.every, config.min_rank, config.min_spread)]
    if config.pictures_every is not None:
        readers.append(PictureReader(config.pictures_every))
    found: list[Callback] = [SkipAlarm(config.max_skips), Watch(readers)]
    if config.probe_train and config.probe_test:
        found.append(
            OnlineProbe(config.probe_train, config.probe_test, data, batch, config.probe_every, config.probe_clips or 0)
        )
    return [
        *found,
        Speed(config.matrix_tflops or 0.0, data.count_workers()),
    ]  # last: what the others take is no waiting for data
