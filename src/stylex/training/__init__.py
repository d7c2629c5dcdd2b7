"""Training a generator around a classifier: losses that know the phases, a loop that knows no loss."""

from stylex.training.loop import Trainer, TrainingResult, train
from stylex.training.optimisers import parameter_count
from stylex.training.progress import Progress
from stylex.training.watching import watched_images

__all__ = ["Progress", "Trainer", "TrainingResult", "parameter_count", "train", "watched_images"]
