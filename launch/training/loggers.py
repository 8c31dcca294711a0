"""Loggers that give one continuous curve however often a run was interrupted, and their registry, `run.loggers`.

A killed run repeats the steps after its last checkpoint. The csv drops those rows on resume, and TensorBoard purges
them; both are flushed to disk before a checkpoint is written, so no step before it is missing.
"""

import csv
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger

from data.files import replacing, sync
from vjepa.registry import Registry

MakeLogger = Callable[[Path, int], Logger]  # run directory, first step -> logger
LOGGERS: Registry[MakeLogger] = Registry("run.loggers", "launch.training.loggers", "launch.training.trackers")
METRICS = ("loss", "gauges/rank", "gauges/spread")  # shown beside the hyperparameters in TensorBoard


def make_loggers(names: Sequence[str], folder: Path, first_step: int) -> list[Logger]:
    """The loggers of a run by name; the csv is always among them, because reports and resuming read it.

    Raises ValueError for an unknown name, ImportError if the package of one is not installed.
    """
    return [LOGGERS.find(name)(folder, first_step) for name in dict.fromkeys([*names, "csv"])]


@LOGGERS.register("csv")
class Table(Logger):
    """csv/metrics.csv: one row per logged step, one column per metric; continued across restarts."""

    def __init__(self, folder: Path, first_step: int) -> None:
        super().__init__()
        self.path = folder / "csv" / "metrics.csv"
        self.first_step = first_step  # rows of this step and later are dropped: the run will repeat them
        self.columns: list[str] | None = None  # None: the file has not been read yet
        self.row: dict[str, Any] = {}  # values of the step being logged

    @property
    def name(self) -> str:
        """Required by Lightning."""
        return "csv"

    @property
    def version(self) -> str:
        """Required by Lightning."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: config.yaml holds the hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to the row of `step`; the previous row is written when a new step arrives."""
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        if not values or step is None:
            return
        if self.row and self.row["step"] != step:
            self._append()
        self.row |= {"step": step, **values}

    @rank_zero_only
    def save(self) -> None:
        """Write the current row and sync the file to disk."""
        self._append()
        if self.path.is_file():
            sync(self.path)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the remaining row."""
        self.save()

    def _append(self) -> None:
        if not self.row:
            return
        if self.columns is None:
            self.columns = self._resume()
        new = [name for name in self.row if name not in self.columns]
        if new:
            self.columns += new
            self._rewrite(self._read())
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(self.row)
        self.row = {}

    def _resume(self) -> list[str]:
        """The columns of the existing file, after dropping the rows that will be repeated."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [row for row in self._read() if int(row["step"]) < self.first_step]
        self.columns = list(rows[0]) if rows else ["step"]
        self._rewrite(rows)
        return self.columns

    def _read(self) -> list[dict[str, str]]:
        """The rows of the file; the last line of a killed process may be incomplete and is ignored."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        return list(csv.DictReader(line for line in lines if line.endswith("\n")))

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with replacing(self.path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns or ["step"])
            writer.writeheader()
            writer.writerows(rows)


@LOGGERS.register("tensorboard")
class Board(TensorBoardLogger):
    """TensorBoard, purged of what a killed run logged after its last checkpoint.

    Lightning's epoch is left out: the stream of clips has no epochs, so it would be a flat line.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        super().__init__(folder, name="", version="tensorboard", purge_step=first_step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Fill the HPARAMS tab, with the curves of `METRICS` as its metrics; Lightning would add a point to each."""
        from torch.utils.tensorboard.summary import hparams

        numbers = (int, float)  # anything else is shown as text, also yes and no
        shown = {name: value if type(value) in numbers else str(value) for name, value in vars_of(params).items()}
        for summary in hparams(shown, dict.fromkeys(METRICS, 0.0)):
            self.experiment.file_writer.add_summary(summary)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write everything except the epoch."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

    @rank_zero_only
    def save(self) -> None:
        """Flush to disk."""
        super().save()
        self.experiment.flush()


def vars_of(params: dict[str, Any] | Namespace) -> dict[str, Any]:
    """Hyperparameters as a dict."""
    return vars(params) if isinstance(params, Namespace) else params
