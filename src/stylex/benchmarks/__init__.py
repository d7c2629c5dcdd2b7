"""What `stylex bench` runs: our speed, beside a peer's where one is given, on the machine at hand."""

from stylex.benchmarks.machine import Machine
from stylex.benchmarks.training import TrainingBenchmark, bench_training

__all__ = ["Machine", "TrainingBenchmark", "bench_training"]
