"""Benchmark harness for learning with missing modalities."""

__version__ = "0.1.0"
