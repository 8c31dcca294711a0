"""Did-you-mean suggestions for keys, values, commands and files."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from launch.config_files import CONFIGS
from launch.config_keys import FREE, Key, list_keys

SHOWN = 3  # suggestions
LEAST = 0.6  # minimum similarity of a suggestion, from 0 to 1
MARGIN = 0.15  # suggestions must be within this similarity of the best

# Names of a setting in other projects and other parts of this one -> its key here, most likely first. Only keys of the
# config being loaded are suggested.
ALIASES: dict[str, tuple[str, ...]] = {
    "lr": ("optim.lr", "heads.attentive.lrs"),
    "learning_rate": ("optim.lr", "heads.attentive.lrs"),
    "min_lr": ("optim.final_lr",),
    "warmup": ("optim.warmup_steps", "optim.warmup_share"),
    "warmup_epochs": ("optim.warmup_steps", "optim.warmup_share"),
    "wd": ("optim.weight_decay", "heads.attentive.weight_decays"),
    "clip_grad": ("optim.clip",),
    "grad_clip": ("optim.clip",),
    "max_grad_norm": ("optim.clip",),
    "batch_size": ("run.batch", "run.batch_per_device", "batch", "heads.attentive.batch"),
    "accum_iter": ("run.accumulate", "run.batch_per_device"),
    "gradient_accumulation_steps": ("run.accumulate", "run.batch_per_device"),
    "epochs": ("run.total_clips", "run.steps", "heads.attentive.epochs"),
    "max_steps": ("run.steps", "run.total_clips"),
    "iterations": ("run.steps", "run.total_clips"),
    "num_workers": ("data.workers",),
    "num_frames": ("data.frames", "frames"),
    "frame_step": ("data.stride", "data.fps"),
    "sampling_rate": ("data.stride", "data.fps"),
    "img_size": ("data.crop", "crop"),
    "image_size": ("data.crop", "crop"),
    "crop_size": ("data.crop", "crop"),
    "resolution": ("data.crop", "crop"),
    "dataset": ("data.path", "train", "test"),
    "data_path": ("data.path", "train", "test"),
    "val": ("test",),
    "model": ("encoder.size", "encoder"),
    "model_name": ("encoder.size", "encoder"),
    "arch": ("encoder.size", "encoder"),
    "checkpoint": ("run.start", "encoder"),
    "pretrained": ("run.start", "encoder"),
    "resume": ("run.output", "run.start"),
    "output_dir": ("run.output", "output"),
    "save_dir": ("run.output", "output"),
    "gpus": ("run.devices",),
    "dtype": ("run.precision", "precision"),
    "amp": ("run.precision", "precision"),
    "ema": ("teacher.momentum", "teacher.final_momentum"),
    "mask_ratio": (f"masks.{FREE}.hidden", f"masks.{FREE}.keep"),
    "patch_size": ("encoder.patch",),
    "tubelet_size": ("encoder.tubelet",),
    "num_heads": ("encoder.heads", "predictor.heads", "heads.attentive.heads"),
    "embed_dim": ("encoder.width",),
    "num_layers": ("encoder.depth", "predictor.depth"),
    "save_every": ("run.checkpoint_every",),
    "eval_every": ("health.probe_every",),
    "print_freq": ("run.log_every",),
    "k": ("heads.neighbours",),
}

# Settings without a key -> what to do instead.
NOTES = {
    "wandb": "run.plugins=[examples/wandb_log.py] logs to Weights & Biases; run.output holds csv and TensorBoard files",
    "base": "base: works only in a YAML file, not on the command line; give the other file as the config instead",
}

COMMANDS = {  # names of commands in other projects
    "pretrain": "train",
    "fit": "train",
    "eval": "probe",
    "evaluate": "probe",
    "finetune": "probe",
    "extract": "features",
    "encode": "features",
    "sbatch": "submit",
    "slurm": "submit",
    "benchmark": "bench",
    "check": "doctor",
    "convert": "export",
    "shard": "pack",
}


def suggest_keys(wanted: str, kind: type) -> list[Key]:
    """The closest keys to one that does not exist: by alias, by last part, and by spelling."""
    keys = {key.name: key for key in list_keys(kind)}
    leaf = wanted.rsplit(".", 1)[-1]
    known = [
        name for word in (wanted, leaf) for name in ALIASES.get(word.lower().replace("-", "_"), ()) if name in keys
    ]
    scores = {name: _similarity(wanted, leaf, key) for name, key in keys.items()}
    best = max(scores.values(), default=0.0)
    near = sorted((name for name in keys if scores[name] >= max(LEAST, best - MARGIN)), key=lambda name: -scores[name])
    if known:  # next to an alias, only keys spelt almost alike
        near = [name for name in near if scores[name] > 1 - MARGIN]
    return [keys[name] for name in dict.fromkeys([*known, *near])][:SHOWN]


def explain_key(wanted: str, kind: type) -> str:
    """The second half of an error about a key that does not exist."""
    note = next((NOTES[part] for part in wanted.split(".") if part in NOTES), "")
    if note:
        return note
    found = suggest_keys(wanted, kind)
    if not found:
        sections = ", ".join(dict.fromkeys(key.name.split(".")[0] for key in list_keys(kind)))
        return f"the config has {sections}; --show prints every key"
    named = [f"{_fill_in(key.name, wanted)} ({key.comment or key.type})" for key in found]
    return f"did you mean {' or '.join(named)}?"


def explain_value(value: object, choices: Iterable[object]) -> str:
    """The second half of an error about a value that is not among `choices`."""
    allowed = [str(choice) for choice in choices]
    near = nearest(str(value), allowed, 1)
    return f"choose among {', '.join(allowed)}" + (f"; did you mean {near[0]}?" if near else "")


def explain_command(wanted: str, commands: Iterable[str]) -> str:
    """The second half of an error about a command that does not exist."""
    names = list(commands)
    known = [COMMANDS[wanted]] if COMMANDS.get(wanted) in names else []
    near = list(dict.fromkeys([*known, *nearest(wanted, names, 2)]))
    return f"did you mean {' or '.join(near)}?" if near else f"the commands are {', '.join(names)}"


def explain_file(path: Path) -> str:
    """The second half of an error about a config that does not exist: similar files, ours by short names."""
    own = {os.path.relpath(file): file for file in _list_yaml(path.parent)}
    found = {**own, **{file.stem: file for file in _list_yaml(CONFIGS) if os.path.relpath(file) not in own}}
    stems = {name: file.stem.lower() for name, file in found.items()}
    near = nearest(path.stem.lower(), list(dict.fromkeys(stems.values())), SHOWN)
    names = [name for stem in near for name in found if stems[name] == stem][:SHOWN]
    return f"did you mean {' or '.join(names)}?" if names else "`vjepa configs` lists the ready-made ones"


def nearest(wanted: str, names: list[str], count: int) -> list[str]:
    """The names most similar to `wanted`, best first; names that start with it also count."""
    begun = [name for name in names if len(wanted) > 2 and name.startswith(wanted)]
    close = difflib.get_close_matches(wanted, names, n=count, cutoff=LEAST)
    return list(dict.fromkeys([*close, *begun]))[:count]


def _similarity(wanted: str, leaf: str, key: Key) -> float:
    """From 0 to 1: mainly the similarity of the last parts; that of the whole keys breaks ties."""
    last = difflib.SequenceMatcher(None, leaf, key.leaf).ratio()
    whole = difflib.SequenceMatcher(None, wanted, key.name).ratio()
    return 0.8 * last + 0.2 * whole


def _fill_in(name: str, wanted: str) -> str:
    """`masks.NAME.kind` with NAME replaced by the user's name, if given."""
    parts, given = name.split("."), wanted.split(".")
    if FREE in parts and len(parts) == len(given) and parts[: parts.index(FREE)] == given[: parts.index(FREE)]:
        parts[parts.index(FREE)] = given[parts.index(FREE)]
    return ".".join(parts)


def _list_yaml(folder: Path) -> list[Path]:
    if folder == CONFIGS:
        return sorted(folder.rglob("*.yaml"))
    return sorted(folder.glob("*.y*ml")) if folder.is_dir() else []
