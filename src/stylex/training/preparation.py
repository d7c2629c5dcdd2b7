"""The classifier's evidence, found before the first step by the first of several processes for all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from stylex.classifiers import Classifier
from stylex.data import ImageSet
from stylex.errors import Stopped
from stylex.hardware import Hardware
from stylex.networks.evidence import Evidence
from stylex.parallel import World
from stylex.run import Run, write_json
from stylex.training.evidence import FAIR, fit_evidence
from stylex.training.progress import PREPARING_STOPPED
from stylex.training.schedule import evidence_kimg

log = logging.getLogger("stylex")

BEAT_SECONDS = 60.0
"""Between two signs of life while one process works and the others wait."""


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
    fit, stopped = None, False
    beaten = time.monotonic()

    def beat(done: int, total: int) -> None:
        """Those who wait must hear of the first from time to time, or they take it for dead."""
        nonlocal beaten
        if on_progress is not None:
            on_progress(done, total)
        if time.monotonic() - beaten > BEAT_SECONDS:
            beaten = time.monotonic()
            world.any(False)

    if world.first:
        seed, kimg = run.config.seed, evidence_kimg(run.config.recipe)
        try:
            fit = fit_evidence(evidence, images, classifier, hardware, seed, kimg, on_progress=beat)
        except Stopped:
            stopped = True
        world.any(True)
    else:
        while not world.any(False):
            pass
    if world.any(stopped):
        raise Stopped(PREPARING_STOPPED)
    if world.size > 1:
        own = {key: value.cpu() for key, value in evidence.state_dict().items()}
        evidence.load_state_dict(world.share(own if world.first else {})[0])
    if fit is not None:
        write_json(run.evidence_file, fit.to_json())
        log.log(logging.WARNING if fit.accounted < FAIR else logging.INFO, "%s", fit)
