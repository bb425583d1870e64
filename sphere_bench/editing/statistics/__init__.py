"""Second moments of keys over ordinary text."""
