"""Comparisons of several runs or probes, and the demo."""
