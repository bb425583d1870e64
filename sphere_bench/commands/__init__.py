"""The verbs of the command line: each checks its arguments, then does the work."""
