"""A benchmark harness for sequential model editing."""

__version__ = "0.2.0"
