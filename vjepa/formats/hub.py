"""The Hugging Face Hub: upload an exported folder, download one. Needs the extra `hub`.

A repository is named hf://OWNER/NAME or hf://OWNER/NAME@REVISION. Without the prefix a path is a path: nothing is
downloaded that was not asked for. HF_ENDPOINT and HF_TOKEN mean what they mean to huggingface_hub.
"""

import os
import re
from pathlib import Path

SCHEME = "hf:"
FILES = ("*.json", "*.safetensors", "*.bin", "README.md")  # what loading an encoder can need
CARD = "README.md"
_NAME = re.compile(r"hf:/{0,2}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_LIKE_A_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LICENCE = re.compile(r"^license: *(.*)$", re.MULTILINE)


def is_hub(path: str | Path) -> bool:
    """Does `path` name a repository of the hub?"""
    return str(path).startswith(SCHEME)


def download(path: str | Path) -> Path:
    """The local copy of a repository hf://OWNER/NAME[@REVISION]: weights, settings and model card.

    Raises ValueError for a malformed name, OSError if the hub does not give it, ImportError without huggingface_hub.
    """
    found = _NAME.fullmatch(str(path))
    if found is None:
        raise ValueError(f"{path} must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(found[1], revision=found[2], allow_patterns=list(FILES), endpoint=_endpoint())
    except Exception as error:
        if not _is_of_the_hub(error):
            raise
        raise OSError(
            f"hf://{found[1]} cannot be downloaded: {_first_line(error)}; if it is private, log in with: hf auth login"
        ) from error
    return Path(folder)


def push(folder: str | Path, name: str, licence: str = "", private: bool = False) -> str:
    """Upload an exported folder to the repository OWNER/NAME, which is made if it is not there; returns its address.

    `licence` replaces the one on the model card. Raises ValueError if `folder` is no export or states no licence,
    OSError if the hub refuses it, ImportError without huggingface_hub.
    """
    folder = Path(folder)
    name = name.removeprefix("hf://")
    if _NAME.fullmatch(f"hf://{name}") is None or "@" in name:
        raise ValueError(f"the repository must be OWNER/NAME, got {name!r}")
    if not (folder / CARD).is_file() or not any(folder.glob("*.json")):
        raise ValueError(f"{folder} is not an exported folder; make one: vjepa export RUN {folder}")
    _state_licence(folder / CARD, licence)
    from huggingface_hub import HfApi

    hub = HfApi(endpoint=_endpoint())
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        done = hub.upload_folder(repo_id=name, folder_path=folder, commit_message="vjepa push")
    except Exception as error:
        if not _is_of_the_hub(error):
            raise
        raise OSError(f"{name} cannot be uploaded: {_first_line(error)}; log in with: hf auth login") from error
    return str(done.repo_url) if hasattr(done, "repo_url") else str(done)


def explain_absent(path: str | Path) -> str:
    """What to do about a path that does not exist, if it looks like the name of a repository; else ""."""
    if not _LIKE_A_REPOSITORY.fullmatch(str(path)):
        return ""
    return f'; if it is a repository of the Hugging Face Hub, say so: "hf://{path}" (needs vjepa-pretraining[hub])'


def _state_licence(card: Path, licence: str) -> None:
    text = card.read_text()
    found = _LICENCE.search(text)
    if licence:
        stated = (
            text.replace(found[0], f"license: {licence}", 1) if found else f"---\nlicense: {licence}\n---\n\n{text}"
        )
        card.write_text(stated.replace("- licence: not stated", f"- licence: {licence}", 1))
    elif found is None or found[1] in ("", "unknown"):
        raise ValueError(f"{card} states no licence for the weights: give --licence, such as --licence apache-2.0")


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")


def _is_of_the_hub(error: Exception) -> bool:
    """An answer of the hub, or none: the HTTP client that huggingface_hub uses differs between its versions."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"HfHubHTTPError", "LocalEntryNotFoundError", "TransportError", "RequestException"})


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
