"""Videos made from a seed, each with labels that a single frame does not give away."""
