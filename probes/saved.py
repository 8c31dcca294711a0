"""A trained head in a file beside results.json: `attentive.safetensors`, `attentive4.safetensors` or
`linear.safetensors`.

The tensors have the head's parameter names. The metadata has its dimensions, the class names and the encoder it was
trained on, so the file is self-contained.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from safetensors import SafetensorError, safe_open

from probes.heads import EPSILONS, AttentiveHead, LinearHead
from probes.official import is_official, load_official
from vjepa.formats.accounting import fill
from vjepa.formats.classifier import read_classifier
from vjepa.formats.native import read_safetensors, write_safetensors

FORMAT = "vjepa-head-1"
KINDS = ("attentive", "attentive4", "linear")  # the trained kinds; attentive4 has four layers
VALUE = ("value",)  # name of the single output of a regression head
Head = TypeVar("Head", bound=AttentiveHead | LinearHead)


@dataclass(frozen=True)
class SavedHead(Generic[Head]):
    """A trained head, its class names and its encoder."""

    head: Head
    classes: tuple[str, ...]  # names, in the order of the logits
    encoder: str  # path of the encoder it was trained on
    encoder_hash: str  # hash of that encoder's weights; empty: unknown (official probe files)
    source: str = ""  # the file it was loaded from

    def __post_init__(self) -> None:
        if len(self.classes) != self.head.linear.out_features:
            raise ValueError(
                f"{self.source or 'a saved head'}: classes must name each of the {self.head.linear.out_features} "
                f"outputs, got {len(self.classes)} names"
            )

    def check_encoder(self, width: int, encoder_hash: str) -> None:
        """Raise ValueError if the head was not trained on an encoder of this width with these weights."""
        wanted = self.head.linear.in_features
        if width != wanted:
            raise ValueError(
                f"{self.source} takes features of width {wanted}, but the encoder has width {width}; it was trained "
                f"on {self.encoder}: use that encoder, or probe this one"
            )
        if self.encoder_hash and encoder_hash != self.encoder_hash:
            raise ValueError(
                f"{self.source} was trained on the features of another encoder ({self.encoder}, weights "
                f"{self.encoder_hash}; these are {encoder_hash}): use that encoder, or probe this one"
            )


def save_head(saved: SavedHead[Head], folder: str | Path) -> Path:
    """Save a head in a probe's folder; returns the file."""
    head, kind = saved.head, name_kind(saved.head)
    description: dict[str, Any] = {
        "kind": kind,
        "width": saved.head.linear.in_features,
        "classes": saved.classes,
        "encoder": saved.encoder,
        "encoder_hash": saved.encoder_hash,
    }
    if isinstance(head, AttentiveHead):
        description |= {"heads": head.heads, "depth": head.depth, "epsilon": head.epsilon}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    path = Path(folder) / f"{kind}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(weights, path, {"format": FORMAT, "head": json.dumps(description)})
    return path


def save_heads(
    heads: Iterable[AttentiveHead | LinearHead | None],
    folder: str | Path,
    classes: Sequence[str],
    encoder: str,
    encoder_hash: str,
) -> None:
    """Save the heads of a probe and delete those of an earlier probe in the folder; None entries are skipped."""
    for kind in KINDS:
        (Path(folder) / f"{kind}.safetensors").unlink(missing_ok=True)
    for head in heads:
        if head is not None:
            save_head(SavedHead(head, tuple(classes) or VALUE, encoder, encoder_hash), folder)


def name_kind(head: AttentiveHead | LinearHead) -> str:
    """The name of a head's kind, which is also its file name."""
    if isinstance(head, LinearHead):
        return "linear"
    return "attentive" if head.depth == 1 else f"attentive{head.depth}"


def load_attentive(path: str | Path) -> SavedHead[AttentiveHead]:
    """Load the attentive head of a probe; `path` is the probe's folder, its results.json or the head's file.

    It may also be an official probe file (see `probes.official`), whose classes have numbers for names. If a folder has
    heads of depth 1 and 4, the one of depth 1 is loaded. Raises FileNotFoundError if there is none, ValueError if the
    file is something else or damaged.
    """
    if is_official(path):
        head = load_official(path)
        names = tuple(str(number) for number in range(head.linear.out_features))
        return SavedHead(head, names, "the encoder of the official probe", "", str(path))
    file, description = _find(path, ("attentive", "attentive4"))
    styles = {epsilon: style for style, epsilon in EPSILONS.items()}
    style = styles.get(description["epsilon"])
    if style is None:
        raise ValueError(
            f"{file}: epsilon must be {' or '.join(map(str, styles))}, got {description['epsilon']}; probe again"
        )
    width, heads, depth = description["width"], description["heads"], description.get("depth", 1)
    return _fill(AttentiveHead(width, heads, len(description["classes"]), depth, style), file, description)


def load_linear(path: str | Path) -> SavedHead[LinearHead]:
    """Load the linear head of a probe (see `load_attentive`); its input is the mean of the tokens."""
    file, description = _find(path, ("linear",))
    return _fill(LinearHead(description["width"], len(description["classes"])), file, description)


def load_classifier(folder: str | Path, encoder_hash: str = "") -> SavedHead[AttentiveHead]:
    """Load the head of a VJEPA2ForVideoClassification folder; does not need transformers.

    encoder_hash: hash of the folder's encoder, to which the head belongs. Raises ValueError if there is no such head.
    """
    weights, heads, classes = read_classifier(folder)
    depth = 1 + len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    head = AttentiveHead(weights["linear.weight"].shape[1], heads, len(classes), depth)
    fill(head, weights, f"{folder} (classifier)")
    return SavedHead(head.eval().requires_grad_(False), tuple(classes), str(folder), encoder_hash, str(folder))


def _find(path: str | Path, kinds: tuple[str, ...]) -> tuple[Path, dict[str, Any]]:
    path = Path(path)
    if path.suffix == ".safetensors" and path.is_file():
        description = _read_description(path)
        if description["kind"] not in kinds:
            raise ValueError(f"{path} must hold a head of kind {' or '.join(kinds)}, got {description['kind']}")
        return path, description
    folder = path if path.is_dir() else path.parent
    files = [folder / f"{kind}.safetensors" for kind in kinds]
    file = next((file for file in files if file.is_file()), files[0])
    if not path.exists() or not file.is_file():
        raise FileNotFoundError(
            f"{path} holds no saved {kinds[0]} head: there is no {file}; `vjepa probe` with {kinds[0]} "
            f"among heads.names writes it beside results.json"
        )
    return file, _read_description(file)


def _fill(head: Head, file: Path, description: dict[str, Any]) -> SavedHead[Head]:
    fill(head, read_safetensors(file), str(file))
    head.eval().requires_grad_(False)
    names = tuple(description["classes"])
    return SavedHead(head, names, description["encoder"], description["encoder_hash"], str(file))


def _read_description(file: Path) -> dict[str, Any]:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}); probe again") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{file}: format must be {FORMAT!r}, got {metadata.get('format')!r}; probe again")
    description: dict[str, Any] = json.loads(metadata["head"])
    return description
