"""Measure the surprise of pairs of videos, and tell possible from impossible by it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from launch.seeing.energies import Measure, all_measures, context_steps, cut_windows, measure_windows
from launch.seeing.imagination import Imagination
from launch.seeing.pairs import Group, read_frames, read_groups
from launch.seeing.scores import POOLS, Surprises, compare, score, split_groups

FOLDER = "surprise"


@dataclass(frozen=True)
class SurpriseConfig:
    """Which videos are compared, and how they are cut into windows."""

    pairs: str = ""  # folder of possible and impossible videos; required
    layout: str = "auto"  # twins, intphys, folders or table; auto: the first that fits
    step: int = 1  # take every `step`-th frame (published: IntPhys 2, GRASP 10, InfLevel 5)
    stride: int = 2  # frames between windows
    contexts: tuple[int, ...] = ()  # visible frames of a window; empty: a quarter, a half and three quarters
    mask: str | None = None  # kind of mask whose mask token is used; null: the first that hides the future
    validation: float = 0.3  # fraction of the groups that choose the context length, never tested
    groups: int | None = None  # measure at most this many groups; null: all
    batch: int = 32  # windows at a time
    seed: int = 0  # of the split, the intervals and the untrained model
    output: str | None = None  # folder; null: RUN/surprise

    def __post_init__(self) -> None:
        for name in ("step", "stride", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation must lie between 0 and 1, got {self.validation}")


@dataclass(frozen=True)
class Outcome:
    """Everything that `surprise` measured."""

    methods: Mapping[str, Mapping[str, Mapping[str, Any]]]  # method -> property (or all) -> scores
    differences: Mapping[str, Sequence[float]]  # the model's accuracy minus a baseline's, with interval
    contexts: Sequence[int]  # frames
    validation: int  # groups
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)  # mean energy by step of possible, impossible

    def plain(self) -> dict[str, Any]:
        """Plain data for a file."""
        return {
            "contexts": list(self.contexts),
            "validation_groups": self.validation,
            "methods": {name: dict(found) for name, found in self.methods.items()},
            "model_minus": {name: list(found) for name, found in self.differences.items()},
            "curves": {
                name: [None if np.isnan(value) else value for value in values] for name, values in self.curves.items()
            },
        }


def surprise(imagination: Imagination, config: SurpriseConfig) -> Outcome:
    """Measure all groups; ValueError if a video is shorter than a window or too few groups are left to test."""
    if not config.pairs:
        raise ValueError("pairs is required: give pairs=FOLDER")
    if config.mask is not None and config.mask not in imagination.masks:
        raise ValueError(f"mask must be one of {', '.join(imagination.masks)}, got {config.mask}")
    groups = read_groups(Path(config.pairs), config.layout)
    if config.groups is not None:
        order = np.random.default_rng(config.seed).permutation(len(groups))[: config.groups]
        groups = [groups[index] for index in sorted(order.tolist())]
    properties = [group.property for group in groups]
    validation, test = split_groups(properties, config.validation, config.seed)
    steps = context_steps(imagination, config.contexts)
    measures = all_measures(imagination, steps, config.mask, config.seed)
    found, energies = _measure_groups(imagination, groups, measures, config)
    methods = {name: _score_all(part, properties, validation, test, config.seed) for name, part in found.items()}
    chosen = {name: scores["all"]["context_mean"] for name, scores in methods.items()}
    differences = {
        name: compare(found["model"], part, (chosen["model"], chosen[name]), test, config.seed)
        for name, part in found.items()
        if name != "model"
    }
    frames = [seen * imagination.config.tubelet for seen in steps]
    curves = energies[test][..., chosen["model"], :].mean((0, 1))
    return Outcome(
        methods,
        differences,
        frames,
        len(validation),
        {"possible": curves[0].tolist(), "impossible": curves[1].tolist()},
    )


def _measure_groups(
    imagination: Imagination, groups: Sequence[Group], measures: Mapping[str, Measure], config: SurpriseConfig
) -> tuple[dict[str, Surprises], np.ndarray[Any, Any]]:
    """Pooled surprise of every video by every measure, and the model's energy by step [G, P, 2, C, t]."""
    pairs = len(groups[0].possible)
    if any(len(group.possible) != pairs for group in groups):
        raise ValueError(f"all groups need the same number of pairs; {groups[0].name} has {pairs}")
    pooled: dict[str, dict[str, list[list[float]]]] = {name: {pool: [] for pool in POOLS} for name in measures}
    curves: list[np.ndarray[Any, Any]] = []
    for group in tqdm(groups, unit="group", desc="surprise"):
        videos = [path for pair in zip(group.possible, group.impossible, strict=True) for path in pair]
        windows = [
            cut_windows(
                read_frames(path, imagination.config.crop, config.step),
                imagination.config.frames,
                config.stride,
                str(path),
            )
            for path in videos
        ]
        lengths = [len(part) for part in windows]
        for name, energy in measure_windows(torch.cat(windows), measures, config.batch).items():
            each = energy.nanmean(2).split(lengths, 1)
            pooled[name]["mean"] += [part.mean(1).tolist() for part in each]
            pooled[name]["max"] += [part.amax(1).tolist() for part in each]
            if name == "model":
                curves += [part.mean(1).numpy() for part in energy.split(lengths, 1)]
    shape = (len(groups), pairs, 2)
    found = {
        name: Surprises({pool: np.asarray(rows).reshape(*shape, -1) for pool, rows in pools.items()})
        for name, pools in pooled.items()
    }
    return found, np.stack(curves).reshape(*shape, *curves[0].shape)


def _score_all(
    found: Surprises, properties: Sequence[str], validation: Sequence[int], test: Sequence[int], seed: int
) -> dict[str, dict[str, Any]]:
    """Scores over all test groups and for each property; one context length, chosen on all validation groups."""
    scores = {"all": score(found, validation, test, seed)}
    for name in dict.fromkeys(properties):
        members = [index for index in test if properties[index] == name]
        if members:
            scores[name] = score(found, validation, members, seed)
    return scores
