"""Videos generated from a seed, with labels that cannot be read from a single frame."""
