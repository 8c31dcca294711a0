"""The command line: `vjepa <command>`. No other package reads command-line arguments."""
