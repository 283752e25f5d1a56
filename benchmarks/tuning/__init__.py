"""The tuner beside other optimizers on simulated runtimes: `python -m benchmarks.tuning.tuners`."""
