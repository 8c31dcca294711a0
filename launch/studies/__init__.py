"""Several runs put side by side, and the demo."""
