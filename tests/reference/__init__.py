"""The published per-request algorithms, written plainly; slow on purpose.

Tests hold the package to them, and ``scripts/benchmark.py`` measures what the package saves. They
take tokens and subject positions from the package, whose tests hold those to published numbers,
and nothing that batches, caches or skips.
"""
