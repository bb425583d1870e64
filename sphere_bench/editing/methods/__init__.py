"""Editors that are not locate-then-edit."""
