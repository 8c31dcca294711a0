"""`python -m vjepa`: the same as the console script `vjepa`, for instance under torchrun."""

from vjepa.cli import main

main()
