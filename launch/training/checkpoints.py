"""The checkpoints of a run: found, verified before they are loaded, and read.

A file under its final name is complete (see `saving.py`). Corruption after that is found by the checksums inside the
file, which `torch.load` does not verify. Computing them reads the whole file, so one rank does it and leaves a note for
the others.
"""

import json
import logging
import time
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from data.files import write_json
from vjepa.config import JepaConfig
from vjepa.formats.pickled import load_pickled
from vjepa.jepa import JEPA, convert_weights

MODULE = ("state_dict", "config", "position")  # entries needed to rebuild the module
REQUIRED = (*MODULE, "global_step", "optimizer_states", "loops", "data", "random")  # entries needed to resume a run

KINDS: dict[str, type] = {
    "state_dict": dict, "config": dict, "position": int, "global_step": int, "optimizer_states": list, "loops": dict,
    "data": dict, "random": list,
}  # fmt: skip

VERIFIED = "verified.json"  # the note of rank 0 in the run directory: what it found intact, and what damaged
PATIENCE = 600.0  # seconds to wait for the note

logger = logging.getLogger(__name__)


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """step -> checkpoint file of a run directory, newest first."""
    found = {}
    for path in (folder / "checkpoints").glob("step-*.ckpt"):
        number = path.stem.removeprefix("step-")
        if number.isdigit():
            found[int(number)] = path
    return dict(sorted(found.items(), reverse=True))


def latest_checkpoint(folder: Path, rank: int | None = None) -> Path | None:
    """The newest intact checkpoint of a run directory, or None if there are no checkpoints.

    Of the ranks of a run, rank 0 verifies the files and leaves a note; the others take its word, so that a node does
    not read a file once per device. None: verify, without a note. Raises ValueError if all of them are damaged:
    silently starting from scratch would lose the run.
    """
    damaged: list[str] = []
    faulty: list[Path] = []
    for path in list_checkpoints(folder).values():
        fault = _ask_rank_0(path) if rank else find_fault(path)
        if not fault:
            if rank == 0:
                _note(folder, [path], faulty)
            return path
        faulty.append(path)
        damaged.append(f"{path} is damaged ({fault})")
        if not rank:
            logger.warning("CHECKPOINT DAMAGED: skipping %s: %s. Trying the one before it", path, fault)
    if damaged:
        if rank == 0:
            _note(folder, [], faulty)
        raise ValueError(f"{'; '.join(damaged)}. No checkpoint is intact: restore one, or delete them to start over")
    return None


def _identify(path: Path) -> list[Any]:
    """What changes when a file is written again."""
    found = path.stat()
    return [path.name, found.st_size, found.st_mtime_ns]


def _note(folder: Path, intact: list[Path], damaged: list[Path]) -> None:
    note = {"intact": [_identify(path) for path in intact], "damaged": [_identify(path) for path in damaged]}
    write_json(folder / VERIFIED, note)


def _is_noted(path: Path, verdict: str) -> bool:
    note = path.parent.parent / VERIFIED
    return note.is_file() and _identify(path) in json.loads(note.read_text())[verdict]


def _ask_rank_0(path: Path) -> str:
    """As `find_fault`, from rank 0's note; without one in time, this rank verifies the file itself."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if _is_noted(path, "intact"):
            return ""
        if _is_noted(path, "damaged"):
            return "says rank 0"
        time.sleep(0.1)
    return find_fault(path)


def find_fault(path: Path) -> str:
    """A description of the damage to a file; "" if it is intact."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        return f"{error or type(error).__name__}, {path.stat().st_size} bytes"
    if part:
        return f"the checksum of {part} does not match"
    try:
        read_checkpoint(path, ())  # the table of contents has no checksum
    except ValueError as error:
        return str(error)
    return ""


def read_checkpoint(path: Path, required: tuple[str, ...] = REQUIRED) -> dict[str, Any]:
    """The contents of a training checkpoint, with its tensors memory-mapped.

    Raises ValueError if the file is damaged, would run code, or is not a training checkpoint.
    """
    stored = load_pickled(path)
    missing = [name for name in required if name not in stored]
    if missing:
        raise ValueError(
            f"{path} is not a checkpoint of `vjepa train`: it lacks {', '.join(missing)} and contains "
            f"{', '.join(sorted(map(str, stored))[:8])}"
        )
    for name, kind in KINDS.items():
        if name in stored and not isinstance(stored[name], kind):
            raise ValueError(f"{path} is damaged: {name} must be a {kind.__name__}, not {type(stored[name]).__name__}")
    if not all(isinstance(tensor, Tensor) for tensor in stored.get("state_dict", {}).values()):
        raise ValueError(f"{path} is damaged: state_dict must hold nothing but tensors")
    if "state_dict" in stored:
        stored["state_dict"] = convert_weights(stored["state_dict"])
    return stored


def read_config_of(stored: Mapping[str, Any], path: Path) -> JepaConfig:
    """The JepaConfig stored in a checkpoint; ValueError if an incompatible version of this code wrote it."""
    try:
        return JepaConfig.from_dict(stored["config"])
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} was written by another version of this code ({error}); read it with that version"
        ) from error


def check_fits(stored: Mapping[str, Any], model: JEPA, path: Path) -> None:
    """Raise ValueError unless the checkpoint has exactly the tensors and shapes of the module and its optimiser."""
    _compare(stored["state_dict"], model.state_dict(), path, "weights")
    groups = stored["optimizer_states"][0]["param_groups"]
    state = stored["optimizer_states"][0]["state"]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    wanted: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    own = model.configure_optimizers().param_groups
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in own]:
        raise ValueError(
            f"{path} does not match the config: its optimiser groups have {[len(g['params']) for g in groups]} "
            f"parameters, the run's have {[len(g['params']) for g in own]}"
        )
    for group, mine in zip(groups, own, strict=True):
        for number, parameter in zip(group["params"], mine["params"], strict=True):
            if state and (number in state or not model.config.leaves_unused):
                wanted[names[id(parameter)]] = parameter
            if number in state:
                found[names[id(parameter)]] = state[number]["exp_avg"]
    _compare(found, wanted, path, "the optimiser's state")


def load_module(checkpoint: str | Path) -> JEPA:
    """The module stored in a training checkpoint (a run directory or a .ckpt file).

    Raises FileNotFoundError if there is none, and ValueError if the file is damaged or not a training checkpoint.
    """
    path = Path(checkpoint)
    if path.is_dir():
        path = latest_checkpoint(path) or path / "checkpoints"
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; give a run directory or a .ckpt file")
    stored = read_checkpoint(path, MODULE)
    model = JEPA(read_config_of(stored, path))
    _compare(stored["state_dict"], model.state_dict(), path, "weights")
    model.load_state_dict(stored["state_dict"])
    model.on_load_checkpoint(stored)
    return model


def _compare(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, what: str) -> None:
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{name} is not part of the model" for name in found if name not in wanted]
    faults += [
        f"{name} has shape {list(found[name].shape)} in the file and {list(wanted[name].shape)} in the config"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"{path} does not match the config, {what}: {'; '.join(faults[:3])}{more}")
