"""A logger of your own: every metric as a line of JSON. Weights & Biases and MLflow are built in.

vjepa train small data.path=SHARDS run.output=runs/mine run.plugins=[examples/own_logger.py] run.loggers=[lines]
"""

import json
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers.logger import Logger

from launch.training.loggers import LOGGERS


@LOGGERS.register("lines")
class Lines(Logger):
    """RUN/metrics.jsonl; a run that was killed repeats its last steps, so the last line of a step counts."""

    name, version = "lines", ""

    def __init__(self, folder: Path, first_step: int) -> None:
        super().__init__()
        self.file = folder / "metrics.jsonl"

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any], *arguments: Any, **more: Any) -> None:
        self.write({"config": {name: str(value) for name, value in params.items()}})

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.write({"step": step, **metrics})

    def write(self, line: dict[str, Any]) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
