"""The configuration: its typed keys, how it is composed, and the name and identity of a run."""
