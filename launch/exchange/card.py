"""The model card of an export: architecture, how to load it, provenance, and only measured results."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.exchange.encoders import Origin
from launch.exchange.formats import FORMATS
from launch.exchange.round_trip import count_parameters
from probes.results import read_results
from probes.tables import to_markdown

PICTURE = "features.png"

_LOAD = {
    "native": """import vjepa

encoder = vjepa.load_encoder("{folder}")
features = encoder(vjepa.normalise(clips))  # clips uint8 [B, {frames}, {crop}, {crop}, 3] -> [B, {tokens}, {width}]""",
    "transformers": """from transformers import AutoModel

model = AutoModel.from_pretrained("{folder}")
features = model.get_vision_features(video)  # float32 [B, {frames}, 3, {crop}, {crop}] -> [B, {tokens}, {width}]""",
    "classifier": """from transformers import AutoModelForVideoClassification

model = AutoModelForVideoClassification.from_pretrained("{folder}")
logits = model(video).logits  # float32 [B, {frames}, 3, {crop}, {crop}] -> [B, classes], named by model.config.id2label
features = model.vjepa2.get_vision_features(video)  # [B, {tokens}, {width}]""",
    "onnx": """import onnxruntime

session = onnxruntime.InferenceSession("{folder}/encoder.onnx")
(features,) = session.run(None, {{"video": video}})  # float32 [B, 3, {frames}, {crop}, {crop}]
# -> [B, {tokens}, {width}]""",
    "program": """import torch

encoder = torch.export.load("{folder}/encoder.pt2").module()
features = encoder(video)  # float32 [B, 3, {frames}, {crop}, {crop}] -> [B, {tokens}, {width}]""",
    "meta": """import torch

checkpoint = torch.load("{folder}/{file}", weights_only=True)
weights = checkpoint["target_encoder"]  # names start with `module.backbone.`, as the public code expects""",
}


@dataclass(frozen=True)
class CardConfig:
    """Facts that only the owner of the weights knows; an empty one appears as "not stated"."""

    licence: str = ""
    data: str = ""
    results: str = ""  # results.json of `vjepa probe`


def write_card(
    folder: Path, kind: str, origin: Origin, difference: float, config: CardConfig, picture: str = ""
) -> Path:
    """Write README.md into the export; `picture` is the caption of features.png in the same folder."""
    encoder = origin.pretrained.encoder.config
    shape, (t, h, w) = encoder.shape, encoder.grid
    checkpoint = next(folder.glob("checkpoint.*"), Path("checkpoint.pt")).name
    facts = {"folder": folder.name, "file": checkpoint, "tokens": t * h * w}
    snippet = (_LOAD.get(kind) or FORMATS.find(kind).snippet).format(
        frames=encoder.frames, crop=encoder.crop, width=encoder.shape.width, **facts
    )
    task = "video-classification" if kind == "classifier" else "feature-extraction"
    parts = [
        f"---\nlicense: {config.licence or 'unknown'}\ntags:\n- video\n- {task}\n- v-jepa\n---",
        f"# {folder.name}\n\nA video encoder, pretrained without labels by predicting the features of masked regions.",
        f"## Use\n\n```python\n{snippet}\n```\n\nPixels are normalised with ImageNet's mean and standard deviation.",
        "## Architecture\n\n"
        + _list(
            {
                "encoder": f"{encoder.size}, {shape.depth} blocks of width {shape.width}, {shape.heads} heads",
                "parameters": f"{count_parameters(origin.pretrained.encoder):,}",
                "positions": encoder.positions + (f", {encoder.rotary_order}" if encoder.positions == "rotary" else ""),
                "clip": f"{encoder.frames} frames of {encoder.crop} x {encoder.crop} pixels = {t} x {h} x {w} tokens",
                "predictor": "included" if _has_predictor(folder, kind, origin) else "not included",
            }
        ),
        _training(origin, config),
        _results(config.results),
        f"## Features as colours\n\n![{picture}]({PICTURE})\n\n{picture}" if picture else "",
        f"## Check\n\nReloaded and compared with the original on a clip: largest difference {difference:.1e}.",
    ]
    path = folder / "README.md"
    path.write_text("\n\n".join(part for part in parts if part) + "\n")
    return path


def _training(origin: Origin, config: CardConfig) -> str:
    facts = {"data": config.data or "not stated", "licence": config.licence or "not stated", **origin.facts}
    names = {"steps": "steps planned", "clips": "clips seen", "gauges": "last gauge readings"}
    text = "## Training\n\n" + _list(
        {names.get(name, name): value for name, value in facts.items() if name != "config"}
    )
    if "config" in facts:
        text += f"\n\n<details><summary>config</summary>\n\n```yaml\n{facts['config'].strip()}\n```\n\n</details>"
    return text


def _results(path: str) -> str:
    if not path:
        return ""
    document = read_results(path)
    measure = "top-1 %" if document.classes else "mean absolute error"
    rows = [["features", "head", measure, "95 % interval", "clips"]]
    for row in document.rows:
        if document.classes:
            scores = [f"{100 * row['top1']:.1f}", f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"]
        else:
            low, high = row["bootstrap"]["mae"]
            scores = [f"{row['mae']:.4g}", f"{low:.4g} to {high:.4g}"]
        rows.append([row["features"], row["head"], *scores, str(row["samples"])])
    return "## Probes on frozen features\n\n" + "\n".join(to_markdown(rows))


def _has_predictor(folder: Path, kind: str, origin: Origin) -> bool:
    return origin.pretrained.predictor is not None and kind in ("native", "transformers", "classifier", "meta")


def _list(items: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in items.items())
