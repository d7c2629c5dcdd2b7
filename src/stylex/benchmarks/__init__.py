"""What `stylex bench` runs: our speed, beside a peer's where one is given, on the machine at hand."""

from stylex.benchmarks.machine import Machine
from stylex.benchmarks.searching import AttFindBenchmark, bench_attfind
from stylex.benchmarks.training import TrainingBenchmark, bench_training

__all__ = ["AttFindBenchmark", "Machine", "TrainingBenchmark", "bench_attfind", "bench_training"]
