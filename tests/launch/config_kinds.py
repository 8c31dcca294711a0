"""The class of the ready-made configs in each folder of configs/."""

from launch.planning.config import PlanConfig
from launch.probing.probe import ProbeConfig
from launch.studies.compare_objectives import StudyConfig
from launch.training.config import TrainConfig

KINDS: dict[str, type] = {
    "pretrain": TrainConfig,
    "bench": TrainConfig,
    "world": TrainConfig,
    "plan": PlanConfig,
    "probe": ProbeConfig,
    "objectives": StudyConfig,
}
