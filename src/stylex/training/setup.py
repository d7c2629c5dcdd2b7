"""From what a user asked for to a run directory that training can begin in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylex.classifiers import Classifier
from stylex.config import Recipe, RunConfig, flat, load_named, load_recipe, override, validate
from stylex.data import Dataset
from stylex.errors import ConfigError
from stylex.hardware import Hardware
from stylex.run import Run
from stylex.training.origin import Origin, check_fits, write_start

AT_ONCE = ("loss.adversarial_start_kimg", "loss.path_length_start_kimg", "sparsity.start_kimg")
"""Settings that are 0 with an origin: what waits for a generator that has learned to draw need not wait."""

EXCLUSIVE = "sparsity.exclusive"
"""1 with an origin, where styles are told of evidence and made sparse: what reads the evidence begins afresh,
and so comes to styles that nothing else reads (docs/results.md)."""


def kept_at_once(recipe: Recipe) -> list[str]:
    """What an origin sets, as a run that is there has it: not every version set it."""
    values = dict(flat(recipe.model_dump()))
    return [f"{key}={values[key]}" for key in (*AT_ONCE, EXCLUSIVE)]


@dataclass(frozen=True)
class Request:
    """What a user said of a new run; None and empty where nothing was said.

    `recipe` and `experiment` are names or YAML files, `assignments` are `section.key=value`.
    """

    data: str | None = None
    classifier: str | None = None
    recipe: str | None = None
    experiment: str | None = None
    size: int | None = None
    group: str | None = None
    seed: int | None = None
    assignments: Sequence[str] = ()
    origin: Origin | None = None

    def fixed(self) -> frozenset[str]:
        """Keys that must not be chosen automatically: "resolution" and keys of the recipe.

        A recipe that was named keeps its widths and batch, an origin its networks.
        """
        keys = {assignment.partition("=")[0] for assignment in self.assignments}
        base = load_named("experiments", self.experiment) if self.experiment else {}
        if self.size is not None or self.origin or "resolution" in base:
            keys.add("resolution")
        if self.recipe or self.origin or "recipe" in base:
            keys |= {"network.channel_base", "network.channel_max"}
        if self.recipe or "recipe" in base:
            keys.add("training.batch_size")
        return frozenset(keys)

    def settings(self, out: Path) -> RunConfig:
        """The resolved settings of the run `out`, defaults where nothing was said.

        With an origin: its data, resolution and recipe where no other is named, `AT_ONCE` and `EXCLUSIVE`.

        Raises:
            ConfigError: something is missing, unknown or out of range.
            CheckpointError: the origin has other networks.
        """
        if (self.data is None and self.origin is None) or self.classifier is None:
            raise ConfigError("a new run needs --data and --classifier")
        data = self.data or (self.origin.config.data if self.origin else "")
        base: dict[str, Any] = {"experiment": Path(data).name or data}
        if self.origin is not None:
            base |= {"resolution": self.origin.config.resolution, "group": self.origin.config.group}
        if self.experiment:
            base |= load_named("experiments", self.experiment)
        base |= {"data": data, "classifier": self.classifier, "recipe": self._recipe(base.get("recipe"))}
        given = {"resolution": self.size, "seed": self.seed, "group": self.group}
        base |= {key: value for key, value in given.items() if value is not None}
        config = validate(RunConfig, base, f"settings of {out}")
        if self.origin is not None:
            check_fits(self.origin, config)
        return config

    def _recipe(self, of_experiment: Any) -> dict[str, Any]:
        if self.origin is None:
            if self.recipe is None and isinstance(of_experiment, dict):
                return override(of_experiment, self.assignments)
            named = of_experiment if isinstance(of_experiment, str) else "fast"
            return load_recipe(self.recipe or named, self.assignments).model_dump()
        first = [*(f"{key}=0" for key in AT_ONCE), *self.assignments]
        if self.recipe is not None:
            found = load_recipe(self.recipe, first).model_dump()
        else:
            found = override(self.origin.config.recipe.model_dump(mode="json"), first)
        given = {assignment.partition("=")[0] for assignment in self.assignments}
        told = found["network"]["condition"] == "evidence"
        if told and found["sparsity"]["threshold"] and EXCLUSIVE not in given:
            found = override(found, [f"{EXCLUSIVE}=1"])
        return found

    def reasons(self) -> tuple[str, ...]:
        """What an origin changes of the recipe, a sentence for people; empty where it changes nothing."""
        if self.origin is None:
            return ()
        own = load_recipe(self.recipe) if self.recipe else self.origin.config.recipe
        values = dict(flat(own.model_dump()))
        given = {assignment.partition("=")[0] for assignment in self.assignments}
        moved = [f"{key} 0" for key in AT_ONCE if key not in given and values[key] > 0]
        if dict(flat(self._recipe(None)))[EXCLUSIVE] > values[EXCLUSIVE] and EXCLUSIVE not in given:
            moved.append(f"{EXCLUSIVE} 1")
        if not moved:
            return ()
        return (f"{', '.join(moved)}: {self.origin.path} can draw already",)


def create_run(
    out: Path,
    config: RunConfig,
    data: Dataset,
    classifier: Classifier,
    hardware: Hardware,
    origin: Origin | None = None,
    student: Classifier | None = None,
    on_evidence: Callable[[int, int], None] | None = None,
) -> Run:
    """Make the run directory, with the classifier where it can be saved and, with an origin, its weights.

    `student` is what training goes around where the classifier gives no gradients; it is saved too.
    `on_evidence` is told how much of the search for evidence is done, which with an origin comes now.

    Raises:
        RunError: the directory holds something else, or cannot be written.
        CheckpointError: the origin's weights do not fit.
    """

    def prepare(run: Run) -> None:
        if classifier.can_be_saved:
            classifier.save(run.classifier_file)
        if student is not None:
            student.save(run.student_file)
        if origin is not None:
            write_start(run, origin, data.training, student or classifier, hardware, on_evidence)

    hashes = {"data": data.fingerprint, "classifier": classifier.fingerprint}
    about = origin.provenance if origin else None
    return Run.create(out, config, hashes, origin=about, prepare=prepare)
