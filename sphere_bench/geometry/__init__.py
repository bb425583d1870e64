"""Geometry of a weight's neurons: hyperspherical energy, angles and principal directions."""
