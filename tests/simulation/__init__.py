"""The deterministic simulation: whole workflows under a seeded scheduler, a virtual clock and injected faults.

`python -m tests.simulation --help` says how to run it; docs/adr/0016 says why it is built as it is.
"""
