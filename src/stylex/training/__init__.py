"""Training a generator around a classifier: losses that know the phases, a loop that knows no loss."""

from stylex.training.loop import Progress, Trainer, TrainingResult, parameter_count, train

__all__ = ["Progress", "Trainer", "TrainingResult", "parameter_count", "train"]
