"""The experiments that items are reproduced in: which images, which classifier, which recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stylex.errors import ConfigError, DataError


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        name: also that of the settings in stylex/experiments.
        title: what is classified.
        needs: names of the folders to give with --data, and what each must hold.
        generator_data, classifier_data: sources with {name} for a folder.
        architecture: of the classifier; the independent one has the other of small_cnn and mobilenet_v2.
        recipe: of StylEx; plain StyleGAN2 is trained with `stylegan2` in addition.
        stylegan2: settings of recipe stylegan2 that make it comparable: those of the other recipe where the
            study says "the same hyperparameters".
        others: settings of any further recipe that make it comparable: the networks' widths, and a perceptual
            network that needs no download where the experiment's recipe needs none.
        size: pixels along a side.
        note: what is to be known of the data.
        study: counts of training and validation images in the study's Table 1, by what they are used for;
            empty for experiments that are ours.
        flips: the study's and the paper's Table 2, method → (mean, std or None); empty likewise.
        rendered: whether the data are faces that are rendered where they are not given.
    """

    name: str
    title: str
    needs: dict[str, str]
    generator_data: str
    classifier_data: str
    architecture: str
    recipe: str
    stylegan2: tuple[str, ...]
    others: tuple[str, ...]
    size: int
    note: str
    study: dict[str, tuple[int, int]]
    flips: dict[str, tuple[float, float | None]]
    rendered: bool = False

    def sources(self, given: Mapping[str, str]) -> tuple[str, str]:
        """Sources of the generator's and of the classifier's images, folders filled in.

        Raises:
            DataError: a folder that the experiment needs is not given; says what it must hold.
        """
        self._refuse([name for name in self.needs if name not in given])
        return self.generator_data.format(**given), self.classifier_data.format(**given)

    def check(self, given: Mapping[str, str]) -> None:
        """Raise DataError, with where to get it, for folders that are not given or not there.

        What can be rendered need not be given.
        """
        absent = [name for name in self.needs if name not in given and not self.rendered]
        self._refuse(absent + [name for name in given if _is_absent(given[name])], given)

    def _refuse(self, names: Sequence[str], given: Mapping[str, str] | None = None) -> None:
        if not names:
            return
        wanted = [
            f"--data {name}=FOLDER: {self.needs[name]}"
            + (f"; there is no {given[name]}" if given and name in given else "")
            for name in names
        ]
        raise DataError(f"experiment {self.name} needs {', and '.join(wanted)}")

    def generator_source(self, given: Mapping[str, str]) -> str | None:
        """Source of the generator's images alone; None where its folder is not given."""
        try:
            return self.generator_data.format(**given)
        except KeyError:
            return None


_STUDY_NETWORKS = (
    "network.channel_base=65536",
    "network.channel_max=512",
    "training.batch_size=4",
    "training.learning_rate=0.0002",
    "training.total_kimg=880",
    "training.mirror=false",
    "training.ema_halflife_kimg=1.25",
    "loss.path_length_interval=1",
)
_FAST_NETWORKS = (
    "network.channel_base=2048",
    "network.channel_max=64",
    "training.total_kimg=150",
    "training.noise=none",
    "training.mirror=false",
    "training.ema_halflife_kimg=5.5",
)
_STUDY_WIDTHS = ("network.channel_base=65536", "network.channel_max=512", "training.mirror=false")
_FAST_WIDTHS = (
    "network.channel_base=2048",
    "network.channel_max=64",
    "training.mirror=false",
    "training.ema_halflife_kimg=5.5",
    "loss.perceptual_network=classifier",
)

_AFHQ = (
    "AFHQ: train and val with cat and dog in each (github.com/clovaai/stargan-v2, download.sh afhq-dataset)"
)
_FFHQ = "FFHQ: thumbnails128x128 or images1024x1024 (github.com/NVlabs/ffhq-dataset)"
_CELEBA = (
    "CelebA: img_align_celeba, list_attr_celeba.txt, list_eval_partition.txt "
    "(mmlab.ie.cuhk.edu.hk/projects/CelebA.html)"
)

EXPERIMENTS: dict[str, Experiment] = {
    each.name: each
    for each in (
        Experiment(
            "study-afhq",
            "cats and dogs (AFHQ)",
            {"afhq": _AFHQ},
            "afhq:{afhq}#cat,dog",
            "afhq:{afhq}#cat,dog",
            "mobilenet_v2",
            "study",
            _STUDY_NETWORKS,
            _STUDY_WIDTHS,
            64,
            "Cats and dogs of AFHQ; wild animals are left out. Its val (test in version 2) is our test set; "
            "a ninth of its train is set aside for discovery (and to choose the classifier's epoch), which "
            "the study trains on. The published AFHQ has 5,153 cats and 4,739 dogs to train on and 500 of "
            "each for validation, three images fewer on either side than the study's counts.",
            {"StylEx and classifier": (9895, 1003)},
            {
                "Wu et al.": (0.247, 0.012),
                "AttFind with StyleGAN2": (0.391, 0.022),
                "AttFind with StylEx": (0.042, 0.006),
                "paper: Wu et al.": (0.010, None),
                "paper: AttFind with StylEx": (0.250, None),
            },
        ),
        Experiment(
            "study-ffhq-age",
            "age (FFHQ, classifier from CelebA)",
            {"ffhq": _FFHQ, "celeba": _CELEBA},
            "ffhq:{ffhq}",
            "celeba:{celeba}#Young,balanced",
            "mobilenet_v2",
            "study",
            _STUDY_NETWORKS,
            _STUDY_WIDTHS,
            64,
            "The generator sees FFHQ (images 00000 to 59999, the rest is the test set), the classifier "
            "CelebA's attribute Young. The study trained it on 71,968 images of CelebA's 162,770 and "
            "validated on 10,073 of 19,867 without saying which: about twice the number of faces that are "
            "not young, so here all those and as many young ones, in order of number, in each partition. "
            "CelebA's aligned faces are framed wider and lower than FFHQ's; they are cut to FFHQ's frame "
            "(153 pixels around (88, 115)).",
            {"StylEx (FFHQ)": (60000, 10000), "classifier (CelebA)": (71968, 10073)},
            {
                "Wu et al.": (0.253, 0.015),
                "AttFind with StyleGAN2": (0.678, 0.016),
                "AttFind with StylEx": (0.429, 0.013),
                "paper: Wu et al.": (0.169, None),
                "paper: AttFind with StylEx": (0.939, None),
            },
        ),
        Experiment(
            "avatars-age",
            "age (rendered avatars)",
            {"avatars": "a folder that 'stylex data avatars --out FOLDER' wrote; rendered if not given"},
            "{avatars}",
            "{avatars}",
            "small_cnn",
            "fast",
            _FAST_NETWORKS,
            _FAST_WIDTHS,
            64,
            "Rendered faces whose causes are known; 80 : 10 : 10 by hash, faces that look alike in one set.",
            {},
            {},
            rendered=True,
        ),
        Experiment(
            "fashion-mnist",
            "shirts and coats (Fashion-MNIST)",
            {
                "fashion-mnist": "the four idx files (Debian's package dataset-fashion-mnist has them in "
                "/usr/share/datasets/fashion-mnist)"
            },
            "fashion-mnist:{fashion-mnist}#Coat,Shirt",
            "fashion-mnist:{fashion-mnist}#Coat,Shirt",
            "small_cnn",
            "fast",
            _FAST_NETWORKS,
            _FAST_WIDTHS,
            32,
            "Two classes that are often confused; its official test set is the test set.",
            {},
            {},
        ),
    )
}


def _is_absent(place: str) -> bool:
    """Whether a source that is a plain path leads nowhere."""
    return ":" not in place and not Path(place.partition("#")[0]).exists()


def experiment(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"no experiment named '{name}'; there are {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def parse_folders(experiments: Sequence[Experiment], given: Sequence[str]) -> dict[str, str]:
    """`NAME=FOLDER` for each folder; a bare FOLDER where the experiments need one only.

    Raises:
        ConfigError: a name that no experiment needs, or a bare folder where several are needed.
    """
    needs = list(dict.fromkeys(name for each in experiments for name in each.needs))
    folders: dict[str, str] = {}
    for each in given:
        name, separator, folder = each.partition("=")
        if not separator and len(needs) == 1:
            name, folder = needs[0], each
        if name not in needs or not folder:
            names = " and ".join(each.name for each in experiments)
            raise ConfigError(
                f"--data {each}: {names} {'takes' if len(experiments) == 1 else 'take'} "
                + " and ".join(f"--data {need}=FOLDER" for need in needs)
            )
        folders[name] = folder
    return folders
