"""A run's folder: its tables, checkpoints and where its numbers come from."""
