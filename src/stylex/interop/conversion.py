"""Foreign models as runs that every later stage reads, and our generators in other projects' formats."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise
from torch import Tensor, nn

from stylex import networks
from stylex.classifiers import Classifier
from stylex.config import NetworkSettings, Recipe, RunConfig, load_recipe, validate
from stylex.errors import CheckpointError, ClassifierError, ConfigError
from stylex.extras import import_extra
from stylex.interop.files import StyleGAN2, load_stylegan2
from stylex.interop.labels import check_label
from stylex.interop.stylex_tf import is_released_stylex, load_released
from stylex.networks.layers import FIR_TAPS
from stylex.run import Run, checksum, write_atomically, write_tensors

SAMPLED = "sampled latents"
"""The data source of a run whose images are sampled."""

OPSET = 18
"""Version of ONNX's operators that is written."""


def convert(
    source: Path,
    out: Path,
    classifier: Classifier | None,
    *,
    classifier_source: str,
    data: str,
    label: int | None = None,
) -> Run:
    """Write a run from somebody else's StyleGAN2 or StylEx; `attfind` goes on from there.

    Args:
        source: a `.pt`, `.pkl` or `.safetensors` file (see `load_stylegan2`), or a folder with the authors'
            released SavedModels.
        out: a new or empty directory.
        classifier: what is to be explained; None takes the one that a released StylEx brings along.
        classifier_source: how it was named, for the run.
        data: images to explain, for a model with an encoder; "" for none.
        label: class, from 0, that a conditional StyleGAN2-ADA is to draw.

    Raises:
        CheckpointError: the source cannot be read, or is conditional and there is no label.
        ConfigError: a label that the generator is not told of.
        ClassifierError: there is no classifier, or one of another number of classes than the generator.
        RunError: the directory holds something else.
    """
    Run.check_free(out)
    if is_released_stylex(source):
        check_label(label, 0)
        released = load_released(source)
        found = StyleGAN2(
            released.generator, released.mapping, released.discriminator, "stylex", released.encoder
        )
        if classifier is None and released.classifier is not None:
            classifier, classifier_source = released.classifier, "classifier.safetensors"
    else:
        if not source.is_file():
            raise CheckpointError(
                f"{source}: neither a file nor a folder with the released StylEx's SavedModels"
            )
        found = load_stylegan2(source, label)
    if classifier is None:
        raise ClassifierError(
            f"{source}: brings no classifier; say with --classifier what is to be explained"
        )
    told = found.generator.condition_features
    if told not in (0, classifier.classes):
        raise ClassifierError(
            f"{source}: its generator is told of {told} classes, the classifier has {classifier.classes} "
            f"({', '.join(classifier.class_names)})"
        )
    if found.encoder is not None and not data:
        raise ConfigError(f"{source}: has an encoder; name images to explain with --data")
    config = _config(found, classifier, classifier_source, data or SAMPLED)
    run_classifier = classifier

    def prepare(run: Run) -> None:
        if run_classifier.can_be_saved:
            run_classifier.save(run.classifier_file)
        _write_model(run, found, run_classifier)

    return Run.create(out, config, {"classifier": classifier.fingerprint}, prepare=prepare)


def _config(found: StyleGAN2, classifier: Classifier, classifier_source: str, data: str) -> RunConfig:
    generator = found.generator
    resolution = generator.synthesis.layout[-1].resolution
    scorer = found.discriminator
    outputs = 1 if scorer is None else int(scorer.output.weight.shape[0])
    if outputs not in (1, classifier.classes):
        raise CheckpointError(f"the discriminator gives {outputs} scores for {classifier.classes} classes")
    mapping = found.mapping
    condition = "none"
    if generator.condition_features:  # the authors' model is told probabilities, the study's logits
        condition = "probabilities" if found.layout == "stylex" else "logits"
    kinds = (["encode"] if found.encoder is not None else []) + (["sample"] if mapping is not None else [])
    network: dict[str, Any] = NetworkSettings().model_dump() | {
        "latent_features": generator.latent_features,
        "channels_each": _widths(generator.synthesis.layout),
        "condition": condition,
        "discriminator": "classes" if outputs > 1 else "plain",
    }
    if mapping is not None:
        network |= {"z_features": mapping.z_features, "mapping_layers": len(mapping.layers)}
    if found.encoder is not None:
        network["encoder_channels_each"] = _residual_widths(found.encoder)
        network["encoder_hidden"] = int(found.encoder.hidden.weight.shape[0])
    network["discriminator_channels_each"] = network["channels_each"]
    if scorer is not None:
        network["discriminator_channels_each"] = _residual_widths(scorer)
        network["deviation_group"] = min(scorer.deviation_group, 64)
    base = load_recipe("stylegan2")
    told = "" if found.label is None else f" It is always told class {found.label}."
    recipe = base.model_dump() | {
        "name": f"converted {found.layout}",
        "description": f"Made elsewhere and converted; how it was trained is not known.{told}",
        "network": network,
        "training": base.training.model_dump() | {"schedule": kinds},
    }
    settings = {
        "experiment": "converted",
        "data": data,
        "classifier": classifier_source,
        "resolution": resolution,
        "recipe": validate(Recipe, recipe, "the converted model"),
    }
    return validate(RunConfig, settings, "the converted model")


def _widths(layout: tuple[networks.StyleLayer, ...]) -> tuple[int, ...]:
    """Channels at each resolution: what its toRGB layer reads."""
    return tuple(place.channels for place in layout if place.kind == "rgb")


def _residual_widths(network: nn.Module) -> tuple[int, ...]:
    part: Any = network
    weights = [part.from_rgb.weight, *(block.conv1.weight for block in part.blocks)]
    return tuple(int(weight.shape[0]) for weight in reversed(weights))


def _write_model(run: Run, found: StyleGAN2, classifier: Classifier) -> None:
    parts: dict[str, nn.Module | None] = {
        "generator": found.generator,
        "encoder": found.encoder,
        "mapping": found.mapping,
        "discriminator": found.discriminator,
    }
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        if part is not None:
            tensors |= {f"{name}/{key}": value for key, value in part.state_dict().items()}
    header = {
        "config": run.config.model_dump(mode="json"),
        "step": 0,
        "images": 0,
        "class_names": list(classifier.class_names),
        "classifier": None,  # nobody knows what it was trained around
    }
    write_tensors(run.model_file, tensors, header)


def to_stylegan2_ada(generator: networks.Generator, mapping: networks.Mapping | None) -> dict[str, Tensor]:
    """The entries `synthesis.…` and `mapping.…` of StyleGAN2-ADA's G, resampling filters included.

    A generator that reads w ⊕ condition becomes one whose w is that long; its mapping network, which gives w
    alone, is then left out.
    """
    taps = torch.tensor(FIR_TAPS)
    fir = torch.outer(taps, taps) / taps.sum() ** 2
    synthesis = generator.synthesis
    state = {"synthesis.b4.const": synthesis.constant.detach()[0]}
    for number, place in enumerate(synthesis.layout):
        layer: Any = synthesis.layers[number]
        block = f"synthesis.b{place.resolution}"
        part = "torgb" if place.kind == "rgb" else place.name.rpartition(".")[2]
        theirs = f"{block}.{part}"
        state[f"{block}.resample_filter"] = fir
        weight = layer.weight.detach()
        state[f"{theirs}.weight"] = weight if weight.ndim == 4 else weight[:, :, None, None]
        state[f"{theirs}.bias"] = layer.bias.detach()
        if place.kind == "conv":
            state[f"{theirs}.noise_strength"] = layer.noise_strength.detach()
            state[f"{theirs}.noise_const"] = layer.fixed_noise[0, 0]
            state[f"{theirs}.resample_filter"] = fir
        state[f"{theirs}.affine.weight"] = generator.affine_weight.detach()[place.slice]
        state[f"{theirs}.affine.bias"] = generator.affine_bias.detach()[place.slice]
    if mapping is not None and not generator.condition_features:
        state["mapping.w_avg"] = mapping.mean_w
        for number, entry in enumerate(mapping.layers):
            state[f"mapping.fc{number}.weight"] = entry.weight.detach()  # type: ignore[operator]
            state[f"mapping.fc{number}.bias"] = entry.bias.detach()  # type: ignore[operator]
    return {key: value.detach().cpu().float().contiguous().clone() for key, value in state.items()}


class Drawn(nn.Module):
    """Latents [N, W] → images [N, 3, R, R] and the styles [N, T] behind them, noise fixed."""

    def __init__(self, generator: networks.Generator, noise: networks.generator.Noise) -> None:
        super().__init__()
        self.generator, self.noise = generator, noise

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        styles = self.generator.styles(latents)
        return self.generator.synthesis(styles, self.noise), styles


def export(model: Any, kind: str, out: Path) -> dict[str, Any]:
    """Write a run's generator as `stylegan2-ada` (.safetensors or .pt) or `onnx` (.onnx).

    Returns:
        What was written: shapes of inputs and outputs, or the number of entries.

    Raises:
        ConfigError: the file's ending does not suit the kind. ClassifierError: the package onnx is missing.
        RunError: the file cannot be written.
    """
    endings = {"stylegan2-ada": r"\.(safetensors|pt)", "onnx": r"\.onnx"}
    if kind not in endings:
        raise ConfigError(f"--to {kind}: choose from {', '.join(endings)}")
    if not re.fullmatch(endings[kind], out.suffix):
        raise ConfigError(
            f"--out {out}: the name of a file for {kind} must end in {endings[kind]}".replace("\\", "")
        )
    if kind == "onnx":
        return _write_onnx(model, out)
    state = to_stylegan2_ada(model.generator, model.mapping)
    _write_state({"G_ema": state}, out)
    has_mapping = any(key.startswith("mapping.") for key in state)
    return {"file": str(out), "entries": len(state), "mapping": has_mapping}


def _write_state(parts: Mapping[str, Mapping[str, Tensor]], out: Path) -> None:
    if out.suffix == ".pt":
        content = {name: dict(state) for name, state in parts.items()}
        write_atomically(out, lambda file: torch.save(content, file))
        return
    flat = {f"{name}.{key}": value for name, state in parts.items() for key, value in state.items()}
    write_atomically(out, lambda file: file.write(serialise(flat)))


def _write_onnx(model: Any, out: Path) -> dict[str, Any]:
    import_extra("onnxscript", str(out))
    width = model.generator.latent_features + model.generator.condition_features
    drawn = Drawn(model.generator, model.noise).eval().float().cpu()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            drawn,
            (torch.zeros(2, width),),
            f"{folder}/generator.onnx",
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("n")},),
            input_names=["latents"],
            output_names=["images", "styles"],
        )
        content = Path(folder, "generator.onnx").read_bytes()
    write_atomically(out, lambda file: file.write(content))
    return {"file": str(out), "latents": width, "fingerprint": checksum(model.generator.state_dict())}
