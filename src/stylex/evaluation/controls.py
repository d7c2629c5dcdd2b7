"""Rankings that a run is measured beside: the other ways to select, and a classifier with random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from stylex.attfind import BATCH_SIZE, Attribute, Findings, find_attributes, load_logits, sweep
from stylex.attfind.attributes import in_class
from stylex.attfind.likeness import mark_repeats
from stylex.classifiers import Classifier
from stylex.errors import ClassifierError, RunError
from stylex.explainer import Explainer
from stylex.stylespace import DirectedCoordinate

RANDOM_WEIGHTS = "random-weight classifier"
"""Name of the control in results."""

SWEPT = 32
"""Discovery images that the random classifier's attributes are searched on."""

Rankings = dict[str, list[DirectedCoordinate]]
"""Class → (direction, coordinate), best first."""


def picked(findings: Findings) -> dict[str, Rankings]:
    """The run's own selection in the order of its picks, as published, where its ranks have another one."""
    if findings.settings.order == "selection":
        return {}
    rankings: Rankings = {}
    for name, found in findings.attributes.items():
        if any(entry.pick is None for entry in found):
            return {}
        rankings[name] = [entry.change for entry in sorted(found, key=lambda entry: entry.pick or 0)]
    return {f"AttFind {findings.settings.method}": rankings}


def other_selection(explainer: Explainer) -> tuple[str, Rankings]:
    """AttFind's other selection (independent beside subset, subset beside the rest), with its name.

    In the order of its picks. From the effects that the run's search has measured; nothing is measured anew.
    The discriminator's filter, if the search had it, is left out.

    Raises:
        RunError: the run holds no effects.
        DataError: no image outside some class is stable.
    """
    discovery, findings, model = explainer.discovery, explainer.findings, explainer.model
    other = "subset" if findings.settings.method == "independent" else "independent"
    settings = findings.settings.model_copy(update={"method": other})
    after = load_logits(explainer.run, model, discovery, findings.settings)
    before, activation = discovery.logits.numpy(), model.classifier.activation
    found = find_attributes(before, after, discovery.space, model.class_names, settings, activation)
    return f"AttFind {other}", _rankings(found.attributes)


def random_weight_ranking(
    explainer: Explainer,
    *,
    swept: int = SWEPT,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Rankings:
    """AttFind's ranking for a classifier of the same kind with random weights, on the run's own generator.

    An explanation that hangs on what the classifier has learned cannot flip it with coordinates that were
    selected for a network that has learned nothing (after Adebayo et al. 2018, who randomise the explained
    model): what they flip is what large changes of the image flip.

    Args:
        swept: discovery images, evenly spaced.

    Raises:
        RunError: the random classifier gives all of them one class.
    """
    model, discovery = explainer.model, explainer.discovery
    rows = torch.linspace(0, len(discovery.styles) - 1, min(swept, len(discovery.styles))).round().long()
    styles = discovery.styles[rows.to(discovery.styles.device)]
    images = model.synthesise(styles)
    other = replace(model, classifier=random_weights(model.classifier, images, seed))
    before = other.classify(images).cpu().numpy()
    settings = explainer.findings.settings.model_copy(update={"unstable_threshold": None})
    activation = other.classifier.activation
    after = sweep(
        other,
        discovery.space,
        styles,
        shift=settings.shift,
        batch_size=settings.batch_size or BATCH_SIZE,
        on_image=on_progress,
    ).numpy()
    targets = [k for k in range(len(model.class_names)) if not in_class(before, k, activation).all()]
    if not targets:
        raise RunError("a classifier with random weights gives all images one class; try another seed")
    found = find_attributes(
        before, after, discovery.space, model.class_names, settings, activation, targets=targets
    )
    found = mark_repeats(other, discovery.space, styles, torch.from_numpy(before), found)
    return _rankings(found.attributes)


def random_weights(classifier: Classifier, images: Tensor, seed: int = 0) -> Classifier:
    """A copy of a classifier with fresh weights, whose answers to some images are centred and spread alike.

    Fresh networks put every image into one class; so each logit is shifted by its median over `images` and
    scaled to the spread that the trained classifier's has.

    Raises:
        ClassifierError: the network has weights that no layer of it knows how to draw (Python code, say).
    """
    fresh = copy.deepcopy(classifier)
    fresh.temperature = 1.0  # in the scale below
    devices = sorted({weight.device.index or 0 for weight in fresh.parameters() if weight.is_cuda})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        drawn: set[int] = set()
        for module in fresh.network.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
                drawn.update(id(weight) for weight in module.parameters(recurse=False))
        left = [name for name, weight in fresh.network.named_parameters() if id(weight) not in drawn]
        if left or not drawn:
            raise ClassifierError(
                f"classifier '{classifier.architecture}' cannot be drawn with random weights "
                f"({left[0] if left else 'it has none'}); leave the control out"
            )
        with torch.no_grad():
            _measure_statistics(fresh, images)  # draws, where there is dropout
    with torch.no_grad():
        fresh.freeze()
        logits, trained = fresh(images), classifier(images)
        spread = trained.std(dim=0) / logits.std(dim=0).clamp_min(1e-12)
        fresh.network = _Rescaled(fresh.network, logits.median(dim=0).values, spread)
    return fresh.freeze()


class _Rescaled(nn.Module):
    """A network whose logits [N, K] are shifted and scaled; of a single logit the two that stand for it."""

    def __init__(self, network: nn.Module, centre: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        centre, scale = self.centre, self.scale
        assert isinstance(centre, Tensor)
        assert isinstance(scale, Tensor)
        wide = logits.ndim == 2 and logits.shape[1] == len(centre)
        # A single logit z counts as [−z/2, z/2], so that z is centred at twice the second one.
        return (logits - centre) * scale if wide else (logits - 2 * centre[1]) * scale[1]


def _measure_statistics(classifier: Classifier, images: Tensor) -> None:
    """Batch normalisation of fresh weights must know their activations."""
    norms = [m for m in classifier.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = None  # a plain mean over the batches
    classifier.frozen = False
    classifier.train()
    for first in range(0, len(images), 32):
        if len(images[first : first + 32]) > 1:
            classifier(images[first : first + 32])


def _rankings(attributes: Mapping[str, Sequence[Attribute]]) -> Rankings:
    return {name: [entry.change for entry in found] for name, found in attributes.items()}
