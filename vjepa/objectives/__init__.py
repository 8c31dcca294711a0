"""Training objectives, one file each: hidden tokens, hidden and visible tokens, views, the future under actions."""

from vjepa.objectives import dense, masked, rollout, views

__all__ = ["dense", "masked", "rollout", "views"]
