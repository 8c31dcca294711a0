"""Frozen evaluation: what an encoder's features say about videos it was not trained on."""
