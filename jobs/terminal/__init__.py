"""The operator's terminal: text, Ctrl-C, output files."""
