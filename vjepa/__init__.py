"""Self-supervised video pretraining by predicting representations, not pixels.

import vjepa
encoder = vjepa.load_encoder("runs/demo/encoder")
features = encoder(vjepa.normalise(clips))   # clips uint8 [B, T, H, W, 3] -> [B, N, D]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vjepa.formats.native import load_encoder, save_encoder
    from vjepa.jepa import JEPA, JepaConfig
    from vjepa.masks import MaskConfig, draw_masks
    from vjepa.pixels import normalise
    from vjepa.predictor import Predictor, PredictorConfig
    from vjepa.vit import Encoder, EncoderConfig

# Looked up on first use: loading an encoder needs neither the training loop nor Lightning.
_HOME = {
    "Encoder": "vjepa.vit",
    "EncoderConfig": "vjepa.vit",
    "JEPA": "vjepa.jepa",
    "JepaConfig": "vjepa.jepa",
    "MaskConfig": "vjepa.masks",
    "Predictor": "vjepa.predictor",
    "PredictorConfig": "vjepa.predictor",
    "draw_masks": "vjepa.masks",
    "load_encoder": "vjepa.formats.native",
    "normalise": "vjepa.pixels",
    "save_encoder": "vjepa.formats.native",
}

__version__ = "0.1.0"
__all__ = [
    "JEPA",
    "Encoder",
    "EncoderConfig",
    "JepaConfig",
    "MaskConfig",
    "Predictor",
    "PredictorConfig",
    "__version__",
    "draw_masks",
    "load_encoder",
    "normalise",
    "save_encoder",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'vjepa' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
