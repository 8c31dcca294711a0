"""Experiment trackers as loggers: Weights & Biases, offline, and MLflow, in a local folder.

Neither needs a server or an account. One tracked run per run directory, however often it is interrupted.
"""

import os
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import MLFlowLogger, WandbLogger

from data.files import write_text
from launch.training.loggers import LOGGERS

PROJECT = "vjepa"


@LOGGERS.register("wandb")
class Wandb(WandbLogger):
    """Weights & Biases: files in RUN/wandb, sent with `wandb sync`; at once with WANDB_MODE=online."""

    def __init__(self, folder: Path, first_step: int) -> None:
        import wandb  # noqa: F401  # an ImportError that names the package, before a folder is made

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        offline = os.environ.get("WANDB_MODE", "offline") != "online"
        name = folder.resolve().name
        super().__init__(name=name, save_dir=str(folder), offline=offline, id=name, project=project)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the tracked run: the next run of this process is another one."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish()


@LOGGERS.register("mlflow")
class Mlflow(MLFlowLogger):
    """MLflow: a store in RUN/mlflow, or the one that MLFLOW_TRACKING_URI names."""

    def __init__(self, folder: Path, first_step: int) -> None:
        import mlflow  # noqa: F401

        folder = folder.resolve()
        self.note = folder / "mlflow_run.txt"
        run = self.note.read_text().strip() if self.note.is_file() else None
        store = os.environ.get("MLFLOW_TRACKING_URI") or STORE.format(folder=folder)
        super().__init__(PROJECT, folder.name, store, run_id=run)

    @rank_zero_only
    def save(self) -> None:
        """Keep the number of the tracked run, so that a resumed run continues it."""
        if not self.note.is_file():
            write_text(self.note, f"{self.run_id}\n")


STORE = "sqlite:///{folder}/mlflow.db"
