"""The command line: `python -m launch <command>`. No other package reads command-line arguments."""
