"""Settings: frozen, validated, one source of truth; recipes and experiments are YAML over the defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stylex.errors import ConfigError, reason_of

StepKind = Literal["encode", "sample", "swap"]
"""What a step trains on: encoded images, sampled z, or encoded images with another image's condition."""

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Widths = Annotated[tuple[Annotated[int, Field(ge=1)], ...] | None, Field(min_length=2)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Settings(BaseModel):
    """Base of all settings: immutable; unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


class NetworkSettings(Settings):
    """Widths and wiring of the networks."""

    latent_features: int = Field(512, ge=1, description="D, numbers in the encoder's output and in w")
    z_features: int = Field(512, ge=1)
    mapping_layers: int = Field(8, ge=1)
    channel_base: int = Field(32768, ge=8, description="channels at resolution r are min(base / r, max)")
    channel_max: int = Field(512, ge=1)
    encoder_channel_base: int | None = Field(None, ge=8, description="as channel_base, of the encoder alone")
    encoder_channel_max: int | None = Field(None, ge=1, description="as channel_max, of the encoder alone")
    encoder_hidden: int | None = Field(None, ge=1, description="width of the encoder's last hidden layer")
    discriminator_channel_base: int | None = Field(
        None, ge=8, description="as channel_base, of the discriminator alone"
    )
    encoder_components: int = Field(
        0,
        ge=0,
        description="principal components of the training images that the encoder adds to w, "
        "at most latent_features",
    )
    encoder_components_deviation: Positive = Field(
        0.4, description="standard deviation of each component over the training images"
    )
    channels_each: Widths = Field(
        None,
        description="the generator's channels at 4, 8, … pixels, in place of channel_base and channel_max",
    )
    encoder_channels_each: Widths = Field(None, description="as channels_each, of the encoder")
    discriminator_channels_each: Widths = Field(None, description="as channels_each, of the discriminator")
    condition: Literal["probabilities", "logits", "evidence", "none"] = Field(
        "probabilities",
        description="what the generator is told of an image's class; evidence: independent components of "
        "what speaks for it, place by place",
    )
    evidence_components: int | None = Field(
        None, ge=1, description="at most so many, with condition: evidence; null: four for each class"
    )
    discriminator: Literal["plain", "classes", "real+classes"] = Field(
        "classes", description="one score; Σ cₖDₖ(x); or D₀(x) + Σ cₖDₖ(x), c the condition"
    )
    discriminator_network: Literal["residual", "projected"] = Field(
        "residual",
        description="StyleGAN2's; or one that looks through an ImageNet-trained EfficientNet-Lite0",
    )
    deviation_group: int = Field(
        4,
        ge=0,
        description="images in a group of the discriminator's minibatch standard deviation; 0 for none",
    )

    def channels(self, resolution: int) -> dict[int, int]:
        """Feature channels of the generator at every resolution from 4 to `resolution`."""
        return _each(self.channels_each, resolution) or _channels(
            resolution, self.channel_base, self.channel_max
        )

    def encoder_channels(self, resolution: int) -> dict[int, int]:
        """Feature channels of the encoder at every resolution from 4 to `resolution`."""
        base = self.encoder_channel_base or self.channel_base
        return _each(self.encoder_channels_each, resolution) or _channels(
            resolution, base, self.encoder_channel_max or self.channel_max
        )

    def discriminator_channels(self, resolution: int) -> dict[int, int]:
        """Feature channels of the discriminator at every resolution from 4 to `resolution`."""
        base = self.discriminator_channel_base or self.channel_base
        return _each(self.discriminator_channels_each, resolution) or _channels(
            resolution, base, self.channel_max
        )


def _each(widths: tuple[int, ...] | None, resolution: int) -> dict[int, int]:
    """Widths that were said, by resolution; {} where none were.

    Raises:
        ConfigError: there are not as many as resolutions.
    """
    if widths is None:
        return {}
    sizes = [4 << power for power in range(resolution.bit_length() - 2)]
    if len(widths) != len(sizes):
        raise ConfigError(
            f"{len(widths)} widths are given for the {len(sizes)} resolutions from 4 to {resolution}"
        )
    return dict(zip(sizes, widths, strict=True))


def _channels(resolution: int, base: int, maximum: int) -> dict[int, int]:
    sizes = [4 << power for power in range(resolution.bit_length() - 2)]
    return {size: max(1, min(base // size, maximum)) for size in sizes}


class LossSettings(Settings):
    """Weights of the generator's losses, and the two lazy regularisers."""

    adversarial: NonNegative = 1.0
    adversarial_start_kimg: NonNegative = Field(
        0.0, description="until then only encode steps, without discriminator and path length"
    )
    adversarial_ramp_kimg: NonNegative = Field(
        0.0, description="over which the adversarial weight then rises"
    )
    adversarial_steps: tuple[StepKind, ...] = Field(
        ("encode", "sample", "swap"),
        description="kinds of step whose images the discriminator judges; on others it rests",
    )
    l1: NonNegative = 0.1
    l2: NonNegative = Field(0.0, description="mean squared difference: counts the pixels that are far off")
    perceptual: NonNegative = 0.1
    perceptual_network: Literal[
        "lpips-vgg", "lpips-alex", "lpips-squeeze", "efficientnet-lite0", "classifier", "none"
    ] = "lpips-vgg"
    latent_l1: NonNegative = 0.1
    kl: NonNegative = 1.0
    evidence: NonNegative = Field(
        0.0,
        description="squared difference from the components of evidence asked for, with condition: evidence",
    )
    proximity: NonNegative = Field(
        0.0,
        description="mean absolute difference of a swap step's image from the one whose w it has, over every "
        "second image, whose w is then not mixed",
    )
    area: NonNegative = Field(
        0.0,
        description="share of the pixels that a swap changes, however much, on the same images as proximity",
    )
    cycle: NonNegative = Field(
        0.0,
        description="factor on l1 and l2 of the difference between an image and what becomes of it when its "
        "swap is taken back: encoded once more, and told its own condition; on the same images",
    )
    r1: NonNegative | Literal["auto"] = Field(
        10.0, description="γ of γ/2 · ‖∇D‖²; auto: 0.0002 · resolution² / images a step"
    )
    r1_interval: int = Field(16, ge=1)
    path_length: NonNegative = 2.0
    path_length_interval: int = Field(4, ge=1)
    path_length_start_kimg: NonNegative = 0.0
    path_length_batch_shrink: int = Field(2, ge=1, description="path length sees batch / shrink images")
    path_length_in_turn: bool = Field(
        False,
        description="path length takes the schedule's kinds in turn; else the kind of the step it falls on",
    )
    path_length_trains_encoder: bool = True


class SparsitySettings(Settings):
    """The L1 proximal step on the styles' dependence on the condition; threshold 0 switches it off."""

    threshold: NonNegative = 0.0
    exclusive: float = Field(
        0.0,
        ge=0,
        le=1,
        description="how far a style that reads one part of the condition is kept from reading another, or w",
    )
    latent_threshold: NonNegative = Field(
        0.0, description="the same for the styles' dependence on each number of w; 0 switches it off"
    )
    start_kimg: NonNegative = 0.0
    ramp_kimg: NonNegative = 0.0


class TrainingSettings(Settings):
    """The loop: how long, how many images a step, which kinds of step in turn, which rates."""

    total_kimg: Positive = 4000.0
    batch_size: int = Field(16, ge=1)
    accumulate: int = Field(1, ge=1, description="batches whose gradients are averaged for one update")
    schedule: tuple[StepKind, ...] = Field(
        ("encode", "sample"), min_length=1, description="kinds in turn, batch after batch"
    )
    learning_rate: Positive = 0.002
    final_learning_rate_share: float = Field(1.0, gt=0, le=1, description="linear decay over the last fifth")
    betas: tuple[Beta, Beta] = (0.0, 0.99)
    encoder_betas: tuple[Beta, Beta] | None = Field(None, description="by default as betas")
    discriminator_betas: tuple[Beta, Beta] | None = Field(None, description="by default as betas")
    discriminator_learning_rate: Positive | None = Field(None, description="by default as learning_rate")
    lazy_adam: bool = Field(
        True,
        description="as in StyleGAN2, R1 and path length take Adam steps of their own, and its rates are "
        "corrected for them; else their gradients join those of the other losses",
    )
    style_mixing: float = Field(0.9, ge=0, le=1, description="share of images on z steps with two latents")
    noise: Literal["random", "fixed", "none"] = "random"
    mirror: bool = True
    augmentation: Literal["none", "ada"] = Field(
        "none",
        description="ada: what the discriminator sees is augmented as far as it overfits (little data)",
    )
    augmentation_target: float = Field(
        0.6, ge=-1, le=1, description="of r = E[sign D(real)]; above it augmentation gets more frequent"
    )
    augmentation_kimg: Positive = Field(
        500.0, description="thousand images over which its probability p can go from 0 to 1"
    )
    augmentation_max: float = Field(0.8, ge=0, lt=1, description="upper bound of p; at 1 augmentations leak")
    augmentation_flips: bool | None = Field(
        None, description="augmentation has x-flips and 90° rotations; by default as mirror"
    )
    evidence_kimg: Positive = Field(
        100.0,
        description="images that the student of the classifier's evidence sees before training, "
        "at most total_kimg",
    )
    ema_halflife_kimg: Positive = 10.0
    ema_rampup: float | None = Field(0.05, gt=0, description="cap of the half-life as a share of images seen")
    checkpoint_kimg: Positive = 10.0
    keep_checkpoints: int = Field(2, ge=1)
    sample_kimg: Positive = 20.0
    log_kimg: Positive = 1.0


class Recipe(Settings):
    """How to train: one of the published recipes or `fast`."""

    name: str
    description: str = ""
    network: NetworkSettings = NetworkSettings()
    loss: LossSettings = LossSettings()
    sparsity: SparsitySettings = SparsitySettings()
    training: TrainingSettings = TrainingSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.network.condition == "none":
            if self.network.discriminator != "plain":
                raise ValueError(
                    "a conditioned discriminator needs network.condition: probabilities, logits or evidence"
                )
            if "swap" in self.training.schedule:
                raise ValueError("swap steps need network.condition: probabilities, logits or evidence")
            if self.sparsity.threshold > 0:
                raise ValueError(
                    "sparsity.threshold needs network.condition: probabilities, logits or evidence"
                )
        if self.sparsity.exclusive > 0 and self.sparsity.threshold == 0:
            raise ValueError("sparsity.exclusive needs sparsity.threshold above 0, which it is a factor on")
        if self.network.condition == "evidence" and (self.samples or not self.encodes):
            raise ValueError("network.condition: evidence needs an encoder, and no sample steps")
        if self.loss.evidence > 0 and self.network.condition != "evidence":
            raise ValueError("loss.evidence needs network.condition: evidence")
        keeping = self.loss.proximity > 0 or self.loss.area > 0 or self.loss.cycle > 0
        if keeping and "swap" not in self.training.schedule:
            raise ValueError(
                "loss.proximity, loss.area and loss.cycle need swap steps: swap in training.schedule"
            )
        if self.loss.cycle > 0 and self.loss.l1 == 0 and self.loss.l2 == 0:
            raise ValueError("loss.cycle is a factor on loss.l1 and loss.l2: set one of them")
        if self.loss.adversarial_start_kimg > 0 and not self.encodes:
            raise ValueError(
                "loss.adversarial_start_kimg needs an encoder: encode or swap in training.schedule"
            )
        return self

    @property
    def encodes(self) -> bool:
        """Whether the recipe has an encoder."""
        return any(kind != "sample" for kind in self.training.schedule)

    @property
    def samples(self) -> bool:
        """Whether the recipe has a mapping network."""
        return "sample" in self.training.schedule

    @property
    def perceives(self) -> bool:
        """Whether the recipe uses its perceptual network."""
        loss = self.loss
        return (
            "encode" in self.training.schedule and loss.perceptual > 0 and loss.perceptual_network != "none"
        )


class AttFindSettings(Settings):
    """How attributes are searched."""

    images_per_class: int = Field(
        125, ge=1, description="discovery images of each class; 250 in all for two classes"
    )
    method: Literal["subset", "independent", "removal"] = "subset"
    count: int = Field(20, ge=1)
    order: Literal["effect", "selection"] = Field(
        "effect",
        description="effect: of what is selected the strongest mean effect first, and what repeats another "
        "later; selection: in the order of the picks, as published",
    )
    max_image_effect: Positive = 1.0
    independent_threshold: Positive = 0.2
    independent_min_share: float = Field(0.03, ge=0, le=1)
    shift: Positive = Field(1.0, description="1 moves a coordinate to the end of its range")
    range_quantile: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="a coordinate's range goes from this quantile of the values seen to the one as far from "
        "the other end; 0: from the smallest to the largest, as published",
    )
    unstable_threshold: Positive | None = Field(2.0, description="null switches the filter off")
    unstable_max_share: float = Field(0.033, ge=0, le=1)
    discriminator_filter: Positive | None = Field(
        None, description="largest change of the score that is accepted"
    )
    effect: Literal["log_odds", "logits"] = "log_odds"
    alike: float | None = Field(
        0.4,
        gt=0,
        le=1,
        description="cosine between two attributes' changes of an image from which they do the same; null: "
        "they are not compared",
    )
    batch_size: int | None = Field(
        None, ge=1, description="edited images synthesised at once; null: a probe finds it"
    )
    sweep: Literal["auto", "exact", "screened"] = Field(
        "auto",
        description="screened: changes that cannot be selected are measured on some images only; auto: "
        "that for more than 100 images, exact for fewer",
    )
    stored: Literal["fp32", "fp16"] = Field(
        "fp32", description="number format of what is measured, as the run keeps it"
    )


class RunConfig(Settings):
    """Everything that a run was made from; lies in the run as config.yaml and in every checkpoint."""

    experiment: str
    data: str
    classifier: str
    group: str | None = Field(None, description="column whose rows stay together in one set")
    resolution: int = Field(64, ge=8)
    seed: int = Field(0, ge=0)
    recipe: Recipe
    attfind: AttFindSettings = AttFindSettings()

    @model_validator(mode="after")
    def _power_of_two(self) -> RunConfig:
        if self.recipe.network.condition == "evidence" and self.resolution < 16:
            raise ValueError(
                "network.condition: evidence needs images of 16 pixels or more; "
                "set network.condition=probabilities and loss.evidence=0"
            )
        if self.resolution & (self.resolution - 1):
            raise ValueError(f"resolution is {self.resolution}, not a power of two")
        return self


def names(kind: Literal["recipes", "experiments"]) -> list[str]:
    """The recipes or experiments that come with the package."""
    folder = resources.files("stylex") / kind
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises ConfigError when the file is missing, damaged or not a mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # a date such as 2024-13-45 is a ValueError
        raise ConfigError(f"{path}: not readable as YAML ({reason_of(error)})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds no mapping of settings")
    return content


def load_named(kind: Literal["recipes", "experiments"], name: str) -> dict[str, Any]:
    """The mapping of a recipe or experiment, by name or by the path of a YAML file."""
    if name.endswith((".yaml", ".yml")):
        return read_yaml(Path(name))
    if name not in names(kind):
        raise ConfigError(
            f"no {kind[:-1]} named '{name}'; there are {', '.join(names(kind))}, or give a .yaml file"
        )
    with resources.as_file(resources.files("stylex") / kind / f"{name}.yaml") as path:
        return read_yaml(path)


def override(settings: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply `section.key=value` assignments (values in YAML) to a nested mapping; returns a new one."""
    result = _copy(settings)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {assignment}: expected key=value, such as training.batch_size=8")
        try:
            value = yaml.safe_load(text)
        except (ValueError, yaml.YAMLError):
            raise ConfigError(f"--set {assignment}: the value is not readable as YAML") from None
        place = result
        *sections, last = key.split(".")
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {assignment}: '{section}' is not a section")
        place[last] = value
    return result


def _copy(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in settings.items()}


def validate(kind: type[S], settings: Mapping[str, Any], where: str) -> S:
    """Build settings; an unknown key or wrong value is a ConfigError of one line that names key and file."""
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "settings"
        message = (
            "unknown key"
            if first["type"] == "extra_forbidden"
            else first["msg"].removeprefix("Value error, ")
        )
        given = first["input"]
        shown = (
            f", not {given!r}" if isinstance(given, str | int | float) and "unknown" not in message else ""
        )
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ConfigError(f"{where}: {key}: {message}{shown}{more}") from None


def changed(settings: S, changes: Mapping[str, Any]) -> S:
    """Settings with some values replaced, `section.key` → value, validated anew; errors as for `validate`."""
    content = settings.model_dump()
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = content
        for section in sections:
            place = place[section]
        place[last] = value
    return validate(type(settings), content, "settings")


def load_recipe(name: str, assignments: Sequence[str] = ()) -> Recipe:
    """A recipe by name or file, with `--set` assignments applied."""
    return validate(Recipe, override(load_named("recipes", name), assignments), f"recipe {name}")


def differences(settings: Settings, base: Settings) -> dict[str, tuple[Any, Any]]:
    """Where two settings of one kind differ: dotted key → (value, value in `base`), in plain types."""
    ours, theirs = (dict(flat(each.model_dump(mode="json"))) for each in (settings, base))
    return {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]}


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings in plain types as (dotted key, value)."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def dump_yaml(settings: Settings) -> str:
    """The settings in full, defaults included, as YAML."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
