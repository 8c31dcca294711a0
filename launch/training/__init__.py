"""A pretraining run: config, trainer, checkpoints, run directory, signals, logs, watchers."""
