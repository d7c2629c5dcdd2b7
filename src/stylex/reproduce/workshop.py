"""What items are made from: classifier, runs, attributes; each made once, when an item first needs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stylex import classifiers, training
from stylex.attfind import SearchSource, load_findings, search
from stylex.config import AttFindSettings, RunConfig, differences, load_recipe
from stylex.data import Dataset, load_dataset, render_avatars
from stylex.data.folder import TABLE
from stylex.errors import RunError
from stylex.evaluation.controls import RANDOM_WEIGHTS
from stylex.evaluation.measure import TestImages, prepare
from stylex.evaluation.stage import evaluate_run, evaluate_study, is_evaluated
from stylex.evaluation.study_protocol import StudySettings
from stylex.explainer import Explainer, open_explainer
from stylex.hardware import Hardware, place
from stylex.model import Model, load_model
from stylex.reproduce.experiments import Experiment
from stylex.reproduce.kept import check_classifier, check_run, finished
from stylex.run import Run, read_json, read_tensors
from stylex.training.plan import SCHEDULE_KEYS, scale_total
from stylex.training.setup import Request, create_run

STYLEGAN2 = "stylegan2"

RECIPES = ("fast", "stylex", "study", STYLEGAN2)
"""Recipes that item `methods` sets side by side."""


@dataclass(eq=False)
class Workshop:
    """A folder in which one experiment is reproduced.

    `home` gets classifier.safetensors, judge.safetensors, one run a recipe, and the items' files. What is
    there is used if it was made as is asked for now, and refused if not (ConfigError); what is not is made. A
    stage that was stopped goes on where it was. Attributes of other settings are searched again; figures of
    other weights, attributes, settings or another judge are measured again.

    Attributes:
        folders: name → folder of the experiment's data; see `Experiment.needs`.
        recipe, size: in place of the experiment's.
        assignments: settings of both recipes, `section.key=value`.
        epochs: of the classifiers.
        study: numbers of protocol study.
        images_per_class: discovery images of each class for AttFind; None for the recipe's.
        model: a folder with the authors' released model, or a converted run; for figure 3.
        recipes, seeds: of item `methods`; by default `RECIPES` and `seed`.
        faces: how many are rendered, where the experiment's are not given.
    """

    experiment: Experiment
    home: Path
    folders: dict[str, str]
    hardware: Hardware
    recipe: str | None = None
    size: int | None = None
    assignments: Sequence[str] = ()
    epochs: int = 15
    seed: int = 0
    study: StudySettings = field(default_factory=StudySettings)
    images_per_class: int | None = None
    model: Path | None = None
    recipes: Sequence[str] = ()
    seeds: Sequence[int] = ()
    faces: int = 13_000
    say: Callable[[str], None] = lambda message: None

    @property
    def pixels(self) -> int:
        return self.size or self.experiment.size

    @property
    def stylex_recipe(self) -> str:
        return self.recipe or self.experiment.recipe

    def render(self) -> None:
        """Render the experiment's faces into `home`/avatars, once, where it has faces and none are given."""
        if not self.experiment.rendered or self.folders:
            return
        folder = self.home / "avatars"
        if not (folder / TABLE).exists():
            self.say(f"rendering {self.faces} faces")
            render_avatars(folder, count=self.faces, size=self.pixels)
        (name,) = self.experiment.needs
        self.folders = {name: str(folder)}

    @cached_property
    def data(self) -> Dataset:
        """The generator's images."""
        source, _ = self.experiment.sources(self.folders)
        return load_dataset(source, size=self.pixels, labelled=False)

    @cached_property
    def classifier_data(self) -> Dataset:
        """The classifier's images, with their classes."""
        _, source = self.experiment.sources(self.folders)
        return load_dataset(source, size=self.pixels)

    def classifier_file(self, judge: bool = False) -> Path:
        """The classifier that is explained, or the independent one; trained where it is missing.

        Raises:
            ConfigError: the one that is there was trained otherwise than is asked for.
        """
        file = self.home / ("judge.safetensors" if judge else "classifier.safetensors")
        own = self.experiment.architecture
        other = "small_cnn" if own == "mobilenet_v2" else "mobilenet_v2"
        architecture, seed, data = other if judge else own, self.seed + judge, self.classifier_data
        if file.exists():
            check_classifier(
                file,
                classifiers.load(file),
                architecture=architecture,
                epochs=self.epochs,
                size=self.pixels,
                seed=seed,
                data=data.fingerprint,
            )
            return file
        self.say(f"training the {'independent ' if judge else ''}classifier")
        trained, _ = classifiers.train(
            data.training,
            data.discovery,
            architecture=architecture,
            epochs=self.epochs,
            seed=seed,
            hardware=self.hardware,
            data_fingerprint=data.fingerprint,
        )
        trained.save(file)
        return file

    def settings(self, recipe: str, seed: int | None = None) -> RunConfig:
        """The settings of a recipe's run, by default of the workshop's own seed."""
        source, _ = self.experiment.sources(self.folders)
        request = Request(
            data=source,
            classifier=str(self.home / "classifier.safetensors"),
            recipe=recipe,
            experiment=self.experiment.name,
            size=self.pixels,
            seed=self.seed if seed is None else seed,
            assignments=(*self._made_comparable(recipe), *self.assignments),
        )
        return request.settings(self.run_folder(recipe, seed))

    def _made_comparable(self, recipe: str) -> tuple[str, ...]:
        """Settings that give a recipe the widths and the length of the experiment's own."""
        if recipe == STYLEGAN2:
            return self.experiment.stylegan2
        if recipe == self.stylex_recipe:
            return ()
        others = self.experiment.others
        fixed = {assignment.partition("=")[0] for assignment in others}
        total = load_recipe(self.stylex_recipe, self.assignments).training.total_kimg
        scaled = scale_total(load_recipe(recipe, others), total, fixed).model_dump()
        keys = [key.split(".") for key in (*SCHEDULE_KEYS, "training.total_kimg") if key not in fixed]
        return (*others, *(f"{section}.{name}={scaled[section][name]}" for section, name in keys))

    def run_folder(self, recipe: str, seed: int | None = None) -> Path:
        """Where the run of a recipe lies."""
        own = seed is None or seed == self.seed
        return self.home / (recipe if own else f"{recipe}-seed-{seed}")

    def begun(self, recipe: str, seed: int | None = None) -> Run | None:
        """The run of a recipe as it is there; None where it is not.

        Raises:
            ConfigError: it was made with other settings, images or classifier.
        """
        path, wanted = self.run_folder(recipe, seed), self.settings(recipe, seed)
        if not (path / "run.json").exists():
            return None
        run, classifier = Run.open(path), classifiers.load(self.classifier_file())
        check_run(run, wanted, data=self.data.fingerprint, classifier=classifier.fingerprint)
        return run

    def run(self, recipe: str, seed: int | None = None) -> Run:
        """The run of a recipe, trained to its end; errors as for `begun`."""
        path, run = self.run_folder(recipe, seed), self.begun(recipe, seed)
        if run is not None and finished(run):
            return run
        classifier = classifiers.load(self.classifier_file())
        if run is None:
            run = create_run(path, self.settings(recipe, seed), self.data, classifier, self.hardware)
        self.say(f"training {path.name}")
        place(classifier.freeze(), self.hardware)
        watch = training.watched_images(self.data)
        training.train(run, self.data.training, classifier, self.hardware, watch=watch)
        if not run.model_file.exists():
            raise RunError(f"{path}: training ended without a model file")
        return run

    def explainer(self, recipe: str, seed: int | None = None) -> Explainer:
        """The run of a recipe with its attributes, searched where they were not as is asked for now."""
        run, settings = self.run(recipe, seed), self.settings(recipe, seed).attfind
        return self.searched(
            run, settings, lambda model: None if model.encoder is None else self.data.discovery
        )

    def searched(
        self, run: Run, settings: AttFindSettings, images: Callable[[Model], SearchSource]
    ) -> Explainer:
        """A run with its attributes, searched on `images` where that has not been done with these settings.

        Exactly, as the study did: some of its items compare the effects of all coordinates. A run that lies
        elsewhere than in `home` is the user's: its attributes are taken as they are.
        """
        settings = settings.model_copy(update={"sweep": "exact"})
        if self.images_per_class is not None:
            settings = settings.model_copy(update={"images_per_class": self.images_per_class})
        with suppress(RunError):  # not searched, or searched before it was trained on
            known = load_findings(run).settings
            mine = run.path.resolve().is_relative_to(self.home.resolve())
            same = set(differences(known, settings)) <= {"batch_size"}
            if not mine and not same:
                self.say(
                    f"{run.path}: searched with settings of its own; its attributes are taken as they are"
                )
            if not mine or same:
                return open_explainer(run, self.hardware)
        self.say(f"searching attributes of {run.path}")
        model = load_model(run, self.hardware)
        with run.locked():
            search(run, model, images(model), settings)
        return open_explainer(run, self.hardware)

    def test_images(self, model: Model) -> TestImages:
        """Test images, or sampled ones where the recipe has no encoder."""
        return prepare(model, self.data.test if model.encoder is not None else None, self.seed)

    def evaluation(self, recipe: str, seed: int | None = None, *, control: bool = False) -> dict[str, Any]:
        """evaluation.json of a recipe's run: of its attributes, our test images and this judge.

        With `control` also of AttFind's published selections, but for what the run's own ranking is, and of a
        classifier with random weights, or why not.
        """
        explainer, judge = self.explainer(recipe, seed), self.classifier_file(judge=True)
        file, test = explainer.run.path / "evaluation.json", self.test_images(explainer.model)
        if is_evaluated(explainer, test):
            known: dict[str, Any] = read_json(file)
            controls = {*(method["method"] for method in known["methods"]), *known.get("left_out", ())}
            has_control = RANDOM_WEIGHTS in controls
            if known.get("judge") == classifiers.load(judge).fingerprint and (has_control or not control):
                return known
        self.say(f"evaluating {explainer.run.path.name}")
        with explainer.run.locked():
            evaluate_run(explainer, test, judge=judge, control=control)
        content: dict[str, Any] = read_json(file)
        return content

    def study_result(self, recipe: str) -> dict[str, object]:
        """study.json of a recipe's run: of its weights, its own images, these settings and this judge."""
        run, judge = self.run(recipe), self.classifier_file(judge=True)
        file = run.path / "study.json"
        if file.exists():
            known: dict[str, Any] = read_json(file)
            asked = {
                "model": read_tensors(run.model_file)[1]["sha256"],
                "judge": classifiers.load(judge).fingerprint,
                "settings": self.study.model_dump(mode="json"),
            }
            images = known.get("measured") or {"source": ""}
            own = images["source"] in (None, run.data_source)
            if own and {key: known.get(key) for key in asked} == asked:
                return known
        self.say(f"protocol study of recipe {recipe}")
        model = load_model(run, self.hardware)
        training_images = self.data.training if model.encoder is not None else None
        with run.locked():
            evaluate_study(run, model, training_images, self.study, judge=judge)
        content: dict[str, object] = read_json(file)
        return content
