"""Training objectives, one file each: hidden tokens, also visible ones, blocks of an image, views, the future."""

from vjepa.objectives import dense, ijepa, levjepa, masked, rollout, views

__all__ = ["dense", "ijepa", "levjepa", "masked", "rollout", "views"]
