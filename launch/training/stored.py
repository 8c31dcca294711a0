"""Loads the config stored in a run directory, including those written by earlier versions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from launch.config import read_files, read_values
from launch.training.config import TrainConfig
from vjepa.config import convert_mask, unset_zeros

# The values with which earlier versions marked a key as unset; now null.
UNSET: dict[str, Any] = {
    "run.total_clips": 0,
    "run.budget": "",
    "run.batch_per_device": 0,
    "run.start": "",
    "run.start_weights": "",
    "run.devices": 0,
    "run.nodes": 0,
    "run.keep_every": 0,
    "health.pictures_every": 0,
    "health.probe_train": "",
    "health.probe_test": "",
    "health.probe_clips": 0,
    "health.matrix_tflops": 0,
    "data.fps": 0,
    "data.workers": -1,
}


def load_stored(path: Path) -> TrainConfig:
    """The config in a run directory's config.yaml; ValueError if this version cannot read it."""
    merged = OmegaConf.merge(*(values for _, values in read_files(path)))
    return read_values(
        TrainConfig, migrate_model(migrate(cast("dict[str, Any]", OmegaConf.to_container(merged)))), str(path)
    )


def migrate_model(values: dict[str, Any]) -> dict[str, Any]:
    """`migrate` for the sections that checkpoints store too; their keys are in `vjepa.config`."""
    if "kind" in values.get("encoder", {}):
        return values  # written by this version
    found = {name: unset_zeros(name, part) if isinstance(part, Mapping) else part for name, part in values.items()}
    found["masks"] = {name: convert_mask(part) for name, part in values.get("masks", {}).items()}
    return found


def migrate(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Stored values with null where an earlier version wrote 0, "" or -1 for unset."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = prefix + name
        if isinstance(value, Mapping):
            found[name] = migrate(value, f"{key}.")
        else:
            found[name] = None if key in UNSET and value == UNSET[key] else value
    return found
