"""What is found before the first step: the images' principal components, and the classifier's evidence."""

from __future__ import annotations

import logging
from collections.abc import Callable

from stylex.classifiers import Classifier
from stylex.data import ImageSet
from stylex.errors import Stopped
from stylex.hardware import Hardware
from stylex.networks import Encoder
from stylex.networks.evidence import Evidence
from stylex.parallel import World
from stylex.run import Run, write_json
from stylex.training.components import fit_components
from stylex.training.evidence import FAIR, EvidenceFit, fit_evidence
from stylex.training.progress import PREPARING_STOPPED
from stylex.training.schedule import evidence_kimg

log = logging.getLogger("stylex")


def prepare_components(encoder: Encoder, images: ImageSet, run: Run, world: World) -> None:
    """Fit the encoder's principal components, each process for itself; the first says what they hold."""
    config = run.config
    held = fit_components(encoder, images, config.recipe.network.encoder_components_deviation, config.seed)
    if world.first:
        log.info("the encoder's %d components hold %.2f %% of the variance", encoder.components, 100 * held)


def prepare_evidence(
    evidence: Evidence,
    images: ImageSet,
    classifier: Classifier,
    hardware: Hardware,
    run: Run,
    world: World,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fit the components of the evidence, the same in all processes, and write what was found into the run.

    One process does it: it is small, and devices' convolutions may differ in the last digits.

    Args:
        on_progress: told by the first process how much is done, of how much; may raise Stopped.

    Raises:
        Stopped: in all processes, where `on_progress` raised it in the first.
    """
    fit: EvidenceFit | None = None

    def work() -> bool:
        nonlocal fit
        seed, kimg = run.config.seed, evidence_kimg(run.config.recipe)
        try:
            fit = fit_evidence(evidence, images, classifier, hardware, seed, kimg, on_progress=on_progress)
        except Stopped:
            return False
        return True

    if not world.from_first(work):
        raise Stopped(PREPARING_STOPPED)
    if world.size > 1:
        own = {key: value.cpu() for key, value in evidence.state_dict().items()}
        evidence.load_state_dict(world.share(own if world.first else {})[0])
    if fit is not None:
        write_json(run.evidence_file, fit.to_json())
        log.log(logging.WARNING if fit.accounted < FAIR else logging.INFO, "%s", fit)
