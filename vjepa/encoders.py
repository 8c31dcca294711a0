"""Imports every built-in encoder, so that all of them are registered."""

from vjepa import encoder, encoder21
from vjepa.world import frames

__all__ = ["encoder", "encoder21", "frames"]
