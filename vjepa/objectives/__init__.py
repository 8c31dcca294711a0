"""Training objectives, one file each: predict hidden tokens, predict hidden and visible tokens, align views."""

from vjepa.objectives import dense, masked, views

__all__ = ["dense", "masked", "views"]
