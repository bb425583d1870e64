"""The numbers of a new model: what is tried, how it is scored, and which numbers are chosen."""
