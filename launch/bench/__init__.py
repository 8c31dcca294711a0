"""Measurements of a machine: step, loader, decoders, probe."""
