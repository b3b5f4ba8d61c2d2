"""Subjects of scripts/benchmark.py, one per file, and the code that they share."""
