"""A benchmark harness for sequential model editing."""

__version__ = "0.1.0"
