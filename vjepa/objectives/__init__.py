"""What is asked of the model, one file each: hidden tokens, hidden and visible ones, or nothing: views must agree."""

from vjepa.objectives import dense, masked, views

__all__ = ["dense", "masked", "views"]
