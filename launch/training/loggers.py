"""What a run logs, as one curve however often it was interrupted.

A run that was killed repeats the steps after its last checkpoint. The csv drops those rows before it goes on, and
TensorBoard is told to forget them; before a checkpoint is written both are on disk, so no step before it is missing.
"""

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger

from data.files import replacing, sync


class Table(Logger):
    """csv/metrics.csv: one row for each step that was logged, one column for each name; kept across restarts."""

    def __init__(self, folder: Path, first_step: int) -> None:
        super().__init__()
        self.path = folder / "csv" / "metrics.csv"
        self.first_step = first_step  # rows of this step and later ones are to be repeated
        self.columns: list[str] | None = None  # None: the file was not looked at yet
        self.row: dict[str, Any] = {}  # of the step that is being logged

    @property
    def name(self) -> str:
        """Lightning asks for it."""
        return "csv"

    @property
    def version(self) -> str:
        """Lightning asks for it."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to the row of `step`; the row before is written once a later step comes."""
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        if not values or step is None:
            return
        if self.row and self.row["step"] != step:
            self._append()
        self.row |= {"step": step, **values}

    @rank_zero_only
    def save(self) -> None:
        """Write the row and see all of them on disk."""
        self._append()
        if self.path.is_file():
            sync(self.path)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()

    def _append(self) -> None:
        if not self.row:
            return
        if self.columns is None:
            self.columns = self._go_on()
        new = [name for name in self.row if name not in self.columns]
        if new:
            self.columns += new
            self._rewrite(self._read())
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(self.row)
        self.row = {}

    def _go_on(self) -> list[str]:
        """Columns of the file that is there, after its rows that will be repeated were dropped."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [row for row in self._read() if int(row["step"]) < self.first_step]
        self.columns = list(rows[0]) if rows else ["step"]
        self._rewrite(rows)
        return self.columns

    def _read(self) -> list[dict[str, str]]:
        """Rows of the file; the last line of a killed process may be cut short and does not count."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        return list(csv.DictReader(line for line in lines if line.endswith("\n")))

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with replacing(self.path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns or ["step"])
            writer.writeheader()
            writer.writerows(rows)


class Board(TensorBoardLogger):
    """TensorBoard, forgetting what a killed run logged after its last checkpoint.

    Without Lightning's count of epochs: the stream of clips has none, so it would be a flat line.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        super().__init__(folder, name="", version="tensorboard", purge_step=first_step)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write all but the epoch."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

    @rank_zero_only
    def save(self) -> None:
        """See it on disk."""
        super().save()
        self.experiment.flush()
