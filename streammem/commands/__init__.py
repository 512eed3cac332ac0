"""The commands: each takes parsed arguments, writes its results, and returns an exit code."""
