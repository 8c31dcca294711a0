"""A snapshot of the code next to the run that uses it, so that later edits cannot change a queued job."""

import errno
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import vjepa
from data.files import replacing

ROOT = Path(__file__).parents[2]
PACKAGES = ("vjepa", "data", "probes", "launch")
NAME = "code.json"


def describe_code() -> dict[str, Any]:
    """The version of this code: git commit, whether files differ from it, and a digest of the files."""
    stored = ROOT / NAME
    if stored.is_file():  # this is a snapshot
        described: dict[str, Any] = json.loads(stored.read_text())
        return described
    changed = _git("status", "--porcelain", "--", *PACKAGES)
    return {
        "commit": _git("rev-parse", "HEAD"),
        "changed": None if changed is None else bool(changed),
        "digest": digest(),
    }


def take_snapshot(folder: Path) -> Path:
    """Copy the packages to `folder`/code/DIGEST and return that path; an existing copy is identical and kept."""
    target = folder / "code" / digest()
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(target) as part:
            for file, place in _files().items():
                copy = part / place
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
            (part / NAME).write_text(json.dumps(describe_code()) + "\n")
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process has made the same copy
            raise
    return target


def digest() -> str:
    """Ten hexadecimal digits that change with any file of the packages."""
    state = hashlib.sha256()
    for file, place in sorted(_files().items(), key=lambda pair: pair[1]):
        state.update(str(place).encode() + b"\0" + file.read_bytes())
    return state.hexdigest()[:10]


def _files() -> dict[Path, Path]:
    """Every file of the packages and configs, and its place in a checkout; an installed `vjepa` is elsewhere."""
    library = Path(vjepa.__file__).parent
    folders = {name: library if name == "vjepa" else ROOT / name for name in (*PACKAGES, "configs")}
    return {
        path: Path(name) / path.relative_to(folder)
        for name, folder in folders.items()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".py", ".typed", ".yaml") and "_tools" not in path.relative_to(folder).parts
    }


def _git(*words: str) -> str | None:
    """The output of git, or None without git or a repository."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
