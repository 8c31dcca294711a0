"""The door: `python -m launch <command>`; the only place that reads the command line."""
