"""One thin module per command: parse the arguments, make one call, print the result."""
