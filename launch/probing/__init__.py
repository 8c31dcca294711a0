"""Frozen evaluation from the command line: what is probed, and the run of a probe."""
