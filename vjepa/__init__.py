"""Self-supervised video pretraining by predicting representations, not pixels.

import vjepa
encoder = vjepa.load_encoder("runs/demo/encoder")
features = encoder(vjepa.normalise(clips))   # clips uint8 [B, T, H, W, 3] -> [B, N, D]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vjepa.extras import explain_missing

if TYPE_CHECKING:
    from vjepa.encoder import Encoder, EncoderConfig
    from vjepa.formats.accounting import Pretrained, resize_encoder, start_from
    from vjepa.formats.architecture import Hints
    from vjepa.formats.loading import load_encoder, load_pretrained
    from vjepa.formats.native import save_encoder
    from vjepa.formats.timm import inflate_image_vit
    from vjepa.jepa import JEPA, JepaConfig
    from vjepa.masks import MaskConfig, draw_masks
    from vjepa.pixels import normalise
    from vjepa.predictor import Predictor, PredictorConfig
    from vjepa.world.model import WorldModel, WorldState

# Imported lazily: loading an encoder needs neither the training loop nor Lightning.
_MODULES = {
    "Encoder": "vjepa.encoder",
    "EncoderConfig": "vjepa.encoder",
    "Hints": "vjepa.formats.architecture",
    "JEPA": "vjepa.jepa",
    "JepaConfig": "vjepa.jepa",
    "MaskConfig": "vjepa.masks",
    "Predictor": "vjepa.predictor",
    "PredictorConfig": "vjepa.predictor",
    "Pretrained": "vjepa.formats.accounting",
    "WorldModel": "vjepa.world.model",
    "WorldState": "vjepa.world.model",
    "draw_masks": "vjepa.masks",
    "inflate_image_vit": "vjepa.formats.timm",
    "load_encoder": "vjepa.formats.loading",
    "load_pretrained": "vjepa.formats.loading",
    "normalise": "vjepa.pixels",
    "resize_encoder": "vjepa.formats.accounting",
    "save_encoder": "vjepa.formats.native",
    "start_from": "vjepa.formats.accounting",
}

__version__ = "0.2.0"
__all__ = [
    "JEPA",
    "Encoder",
    "EncoderConfig",
    "Hints",
    "JepaConfig",
    "MaskConfig",
    "Predictor",
    "PredictorConfig",
    "Pretrained",
    "WorldModel",
    "WorldState",
    "__version__",
    "draw_masks",
    "inflate_image_vit",
    "load_encoder",
    "load_pretrained",
    "normalise",
    "resize_encoder",
    "save_encoder",
    "start_from",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first access; an ImportError says what to install for it."""
    if name not in _MODULES:
        raise AttributeError(f"module 'vjepa' has no attribute {name!r}")
    try:
        return getattr(import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        raise ImportError(explain_missing(error, f"vjepa.{name}"), name=error.name) from error


def __dir__() -> list[str]:
    """All public names, also those not imported yet."""
    return sorted({*globals(), *__all__})
