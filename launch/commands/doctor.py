"""Show what is installed, which devices and decoders work, what is missing, and the command that fixes it.

Starts with the standard library alone.
"""

import argparse
import importlib.metadata
import importlib.util
import io
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vjepa.extras import install_command


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    name: str
    good: bool
    detail: str
    needed: bool = True  # False: optional, not an error when missing


LIBRARY = ("torch", "safetensors")
TRAINING = (
    "pytorch-lightning", "timm", "webdataset", "omegaconf", "av", "tensorboard", "torchmetrics", "matplotlib", "numpy",
    "pillow", "tqdm",
)  # fmt: skip
OPTIONAL = {
    "decord": "videos are decoded by PyAV instead",
    "torchvision": "needed by timm and transformers",
    "transformers": "for `export --format transformers`",
    "onnxruntime": "for `export --format onnx`",
    "scikit-learn": "for the map of `look`, and your own classifiers on `features`",
    "pyarrow": "for `features --table`",
    "huggingface_hub": "for `push`, and encoders named hf://OWNER/NAME",
    "wandb": "for run.loggers=[wandb]",
    "mlflow-skinny": "for run.loggers=[mlflow]",
}
SHARED_MEMORY = "/dev/shm"
FEW_FILES = 1024  # open files that are enough for a loader with the default settings
CHECKOUT = Path(__file__).resolve().parents[2] / "setup.cfg"  # only a checkout has it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`doctor` has no arguments of its own."""


def run(arguments: argparse.Namespace) -> None:
    """Print the table; ValueError if a requirement is missing."""
    findings = packages()
    installed = {finding.name for finding in findings if finding.good}
    if "torch" in installed:
        findings += devices()
    if {"av", "numpy"} <= installed:
        findings += decoders()
    for finding in [*findings, disk(), *limits()]:
        mark = "ok  " if finding.good else ("MISS" if finding.needed else "-   ")
        print(f"{mark} {finding.name:<18} {finding.detail}")
    missing = [finding.name for finding in findings if finding.needed and not finding.good]
    if missing:
        fix = "make install" if CHECKOUT.is_file() else install_command("omegaconf")
        have = "; the library alone, `import vjepa`, works" if not {*LIBRARY} & {*missing} else ""
        raise ValueError(f"missing for training: {', '.join(missing)}; run `{fix}`{have}")
    print("\nEverything required is installed. Try `vjepa demo`, or `vjepa start FOLDER` with your own videos.")


def packages() -> list[Finding]:
    """Installed versions."""
    found = [Finding("python", True, platform.python_version())]
    for name in (*LIBRARY, *TRAINING, *OPTIONAL):
        needed = name not in OPTIONAL
        try:
            found.append(Finding(name, True, importlib.metadata.version(name), needed))
        except importlib.metadata.PackageNotFoundError:
            fix = install_command(
                {"scikit-learn": "sklearn", "pillow": "PIL", "mlflow-skinny": "mlflow"}.get(
                    name, name.replace("-", "_")
                )
            )
            detail = f"not installed: {OPTIONAL[name]}; {fix}" if name in OPTIONAL else fix
            found.append(Finding(name, False, detail, needed))
    return found


def devices() -> list[Finding]:
    """The devices that can train here."""
    import torch

    cores = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    found = [Finding("cpu", True, cores)]
    if not torch.cuda.is_available():
        return [
            *found,
            Finding("gpu", False, "none found: training runs on the CPU, fast enough only for the demo", needed=False),
        ]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        detail = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, bf16 {torch.cuda.is_bf16_supported()}"
        found.append(Finding(f"gpu {number}", True, detail))
    return found


def decoders() -> list[Finding]:
    """Whether each decoder can read a freshly encoded video."""
    import numpy as np

    from data.generated.videos import encode_clip

    frames = np.full((4, 32, 32, 3), 128, dtype=np.uint8)
    buffer = io.BytesIO()
    encode_clip(frames, buffer, 8, 20)
    video = buffer.getvalue()
    return [_try_decoder("decord", _decord, video, needed=False), _try_decoder("pyav", _pyav, video, needed=True)]


def disk() -> Finding:
    """Free disk space in the current folder."""
    free = shutil.disk_usage(".").free / 2**30
    return Finding("disk", free > 2, f"{free:.0f} GiB free here" + ("" if free > 2 else "; the demo needs 2 GiB"))


def limits() -> list[Finding]:
    """What loading processes need of the system: shared memory, through which batches pass, and open files."""
    import resource

    found = []
    if os.path.isdir(SHARED_MEMORY):
        free = shutil.disk_usage(SHARED_MEMORY).free / 2**30
        advice = "" if free >= 1 else "; enlarge it (docker run --shm-size=16g), a node with 8 GPUs uses 10 to 39 GiB"
        found.append(Finding("shared memory", free >= 1, f"{free:.1f} GiB free in {SHARED_MEMORY}{advice}", False))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    good = hard == resource.RLIM_INFINITY or hard >= FEW_FILES
    advice = "" if good else f"; a loader may need {FEW_FILES}, see data.shuffle_shards and data.lanes (ulimit -Hn)"
    found.append(Finding("open files", good, f"{soft}, can be raised to {most}{advice}", False))
    return found


def _try_decoder(name: str, decode: Callable[[bytes], int], video: bytes, needed: bool) -> Finding:
    if importlib.util.find_spec({"pyav": "av"}.get(name, name)) is None:
        return Finding(f"decoder: {name}", False, "not installed", needed)
    try:
        frames = decode(video)
    except (RuntimeError, OSError, ValueError) as error:
        return Finding(f"decoder: {name}", False, f"failed on an H.264 video: {error}", needed)
    return Finding(f"decoder: {name}", frames == 4, f"H.264, {frames} of 4 frames", needed)


def _decord(video: bytes) -> int:
    import decord

    return len(decord.VideoReader(io.BytesIO(video), num_threads=1))


def _pyav(video: bytes) -> int:
    import av

    with av.open(io.BytesIO(video), mode="r") as container:
        return len(list(container.decode(video=0)))
