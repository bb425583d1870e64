"""Target values: what the last edited layer should put out at the subject."""
