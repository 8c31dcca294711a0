"""Benchmarks of a machine: training step, loader, decoders, probe."""
