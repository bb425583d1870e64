"""Editors: values -> keys -> update -> transforms."""
