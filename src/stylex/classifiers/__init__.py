"""What is explained: load any classifier, or train one."""

from stylex.classifiers.checking import Inspection, describe, inspect
from stylex.classifiers.classifier import Activation, Classifier
from stylex.classifiers.distillation import Distillation, distil
from stylex.classifiers.loading import load
from stylex.classifiers.metrics import Scores
from stylex.classifiers.training import ClassifierReport, TrainingProgress, evaluate, train

__all__ = [
    "Activation",
    "Classifier",
    "ClassifierReport",
    "Distillation",
    "Inspection",
    "Scores",
    "TrainingProgress",
    "describe",
    "distil",
    "evaluate",
    "inspect",
    "load",
    "train",
]
