"""Benchmarks beside the peers and the physical limits: `python -m benchmarks`."""
