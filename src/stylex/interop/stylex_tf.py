"""The authors' released StylEx: TensorFlow variables of generator, encoder, discriminator and MobileNet.

Only names, shapes and the meaning of the variables are used. They are put into StyleGAN2-ADA's layout, which
`stylegan2_ada` reads; the MobileNet becomes our `mobilenet_v1`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylex import networks
from stylex.classifiers import Classifier
from stylex.classifiers.mobilenet_v1 import MobileNetV1
from stylex.errors import CheckpointError
from stylex.interop import stylegan2_ada
from stylex.interop.tensor_bundle import is_saved_model, read_variables

PARTS = ("generator", "encoder", "discriminator", "mobilenet")
"""Names of the four SavedModels, alone or with a suffix such as `.savedmodel`."""

Variables = Mapping[str, Tensor]


@dataclass(frozen=True)
class ReleasedStylEx:
    """The released model as networks of ours; the classifier takes images in [-1, 1]."""

    generator: networks.Generator
    mapping: networks.Mapping
    encoder: networks.Encoder
    discriminator: networks.Discriminator | None
    classifier: Classifier | None


def find_parts(folder: Path) -> dict[str, Path]:
    """The SavedModels of a folder, by what they are."""
    if not folder.is_dir():
        return {}
    found = {}
    for part in PARTS:
        places = sorted(place for place in folder.glob(f"{part}*") if is_saved_model(place))
        if places:
            found[part] = places[0]
    return found


def is_released_stylex(path: Path) -> bool:
    return {"generator", "encoder"} <= find_parts(path).keys()


def load_released(folder: Path) -> ReleasedStylEx:
    """The networks in a folder with `generator.savedmodel`, `encoder.savedmodel` and so on.

    Raises:
        CheckpointError: generator or encoder is missing, or variables are missing, strange, of shapes that do
            not fit each other, or not finite.
    """
    places = find_parts(folder)
    missing = [part for part in PARTS[:2] if part not in places]
    if missing:
        raise CheckpointError(
            f"{folder}: holds no SavedModel {' and no '.join(missing)}; unpack the released zips"
        )
    variables = {part: read_variables(place) for part, place in places.items()}
    try:
        generator, mapping = stylegan2_ada.convert_generator(_generator(variables["generator"]))
        state = _residual(variables["encoder"], "Encoder")
        encoder = stylegan2_ada.convert_encoder(state)
        discriminator = None
        if "discriminator" in variables:
            discriminator = stylegan2_ada.convert_discriminator(
                _residual(variables["discriminator"], "Discriminator")
            )
        classifier = None
        if "mobilenet" in variables:
            classifier = _classifier(variables["mobilenet"], places["mobilenet"], generator)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    return ReleasedStylEx(generator, mapping, encoder, discriminator, classifier)


class _Taken:
    """Variables by the end of their names; says which is missing."""

    def __init__(self, variables: Variables, what: str) -> None:
        self.variables, self.what = variables, what

    def __call__(self, pattern: str) -> Tensor:
        found = [value for name, value in self.variables.items() if re.search(rf"(^|/){pattern}$", name)]
        if len(found) != 1:
            raise CheckpointError(
                f"{self.what}: {len(found)} variables are called {pattern}, expected one; "
                "is this the released StylEx?"
            )
        return found[0].float()

    def conv(self, pattern: str, *, turned: bool = False) -> Tensor:
        """A kernel [H, W, I, O] as [O, I, H, W]; `turned` by half a turn, for transposed convolutions."""
        kernel = self(pattern)
        if kernel.ndim != 4:
            raise CheckpointError(f"{self.what}: {pattern} has shape {list(kernel.shape)}, expected 4 axes")
        return (kernel.flip(0, 1) if turned else kernel).permute(3, 2, 0, 1).contiguous()

    def numbers(self, pattern: str) -> list[int]:
        """The numbers in a group of `pattern`, each once."""
        return sorted({int(found[1]) for name in self.variables if (found := re.search(pattern, name))})


def _generator(variables: Variables) -> dict[str, Tensor]:
    """StyleGAN2-ADA's entries `synthesis.…` and `mapping.…`; the affine layers read w ⊕ condition."""
    take = _Taken(variables, "released generator")
    state = {"mapping.w_avg": take("dlatent_avg").flatten()}
    for i in take.numbers(r"MappingDense_(\d+)$"):
        state[f"mapping.fc{i}.weight"] = take(f"MappingDense_{i}").T.contiguous()
        state[f"mapping.fc{i}.bias"] = take(f"MappingBias_{i}").flatten()
    state["synthesis.b4.const"] = take("Const4x4")[0]
    noises = iter(range(1000))
    for size in [4, *take.numbers(r"GeneratorBlock(\d+)x\d+/")]:
        level = size.bit_length() - 4
        block = f"GeneratorBlock{size}x{size}"
        layers = [
            ("conv0", f"{block}/Conv0Up", f"StyleVector{level}_0"),
            ("conv1", f"{block}/Conv1", f"StyleVector{level}_1"),
        ]
        rgb_style = f"StyleVectorRGB{level}"
        if size == 4:
            layers = [("conv1", "ConstBlock4x4/GeneratorLayer4x4", "StyleVectorConst")]
            rgb_style = "StyleVectorConstRGB"
        for part, theirs, style in layers:
            ours = f"synthesis.b{size}.{part}"
            state |= {
                f"{ours}.weight": take.conv(f"{theirs}/ModulatedConv2D/weight", turned=part == "conv0"),
                f"{ours}.bias": take(f"{theirs}/FusedBiasAct/BiasAct").flatten(),
                f"{ours}.noise_strength": take(f"{theirs}/NoiseStrength").reshape(()),
                f"{ours}.noise_const": take(f"Noise{next(noises)}").reshape(size, size),
                **_affine(take, ours, style),
            }
        ours, theirs = f"synthesis.b{size}.torgb", f"ToRGB{size}x{size}"
        state |= {
            f"{ours}.weight": take.conv(f"{theirs}/ModulatedConv2D/weight"),
            f"{ours}.bias": take(f"{theirs}/FusedBiasActivation/ToRGBBiasAct").flatten(),
            **_affine(take, ours, rgb_style),
        }
    return state


def _affine(take: _Taken, ours: str, style: str) -> dict[str, Tensor]:
    """The layer that makes a style; there 1 is added to its result, here it is in the bias."""
    return {
        f"{ours}.affine.weight": take(f"{style}/StyleGAN2Dense/weight").T.contiguous(),
        f"{ours}.affine.bias": take(f"{style}/FusedBiasActivation/bias").flatten() + 1,
    }


def _residual(variables: Variables, kind: str) -> dict[str, Tensor]:
    """StyleGAN2-ADA's entries `b{resolution}.…` of the encoder or the discriminator."""
    take = _Taken(variables, f"released {kind.lower()}")
    mark = "Encoder" if kind == "Encoder" else ""
    sizes = take.numbers(rf"{kind}Block(\d+)x\d+/")
    if not sizes:
        raise CheckpointError(
            f"{take.what}: no variable is called {kind}Block…; is this the released StylEx?"
        )
    largest = sizes[-1]
    rgb = f"{mark}FromRGB{largest}x{largest}"
    state = {
        f"b{largest}.fromrgb.weight": take.conv(f"{rgb}/StyleGAN2Conv2D/weight"),
        f"b{largest}.fromrgb.bias": take(f"{rgb}/FusedBiasActivation/FromRGBBias").flatten(),
        "b4.conv.weight": take.conv("Conv4x4/weight"),
        "b4.conv.bias": take(f"{mark}ConvBiasAct4x4/ConvBiasAct4x4").flatten(),
        "b4.fc.weight": take(f"{mark}Dense4x4/weight").T.contiguous(),
        "b4.fc.bias": take(f"{mark}DenseBiasAct4x4/DenseBiasAct4x4").flatten(),
        "b4.out.weight": take(r"style_gan2_dense(_\d+)?/weight").T.contiguous(),
        "b4.out.bias": take(f"{mark}OutputBiasAct/OutputBiasAct").flatten(),
    }
    for size in sizes:
        block = f"{kind}Block{size}x{size}"
        state |= {
            f"b{size}.conv0.weight": take.conv(f"{block}/Conv0/weight"),
            f"b{size}.conv0.bias": take(f"{block}/Conv0Bias/BiasAct0").flatten(),
            f"b{size}.conv1.weight": take.conv(f"{block}/Conv1Down/weight"),
            f"b{size}.conv1.bias": take(f"{block}/Conv1DownBiasAct/BiasAct1").flatten(),
            f"b{size}.skip.weight": take.conv(f"{block}/Skip/weight"),
        }
    return state


def _classifier(variables: Variables, place: Path, generator: networks.Generator) -> Classifier:
    """Keras's MobileNet; its classes are the condition's, and have no names in the file."""
    take = _Taken(variables, "released MobileNet")
    widths = [int(take("conv1/kernel").shape[3])]
    blocks = take.numbers(r"conv_dw_(\d+)/depthwise_kernel$")
    state = {"layers.0.convolution.weight": take.conv("conv1/kernel"), **_norm(take, "conv1_bn", "layers.0")}
    for number, i in enumerate(blocks):
        deep = take(f"conv_dw_{i}/depthwise_kernel")
        state[f"layers.{2 * number + 1}.convolution.weight"] = deep.permute(2, 3, 0, 1).contiguous()
        state |= _norm(take, f"conv_dw_{i}_bn", f"layers.{2 * number + 1}")
        state[f"layers.{2 * number + 2}.convolution.weight"] = take.conv(f"conv_pw_{i}/kernel")
        state |= _norm(take, f"conv_pw_{i}_bn", f"layers.{2 * number + 2}")
        widths.append(int(take(f"conv_pw_{i}/kernel").shape[3]))
    head = take.conv("conv_preds/kernel")
    state |= {"head.weight": head[:, :, 0, 0].contiguous(), "head.bias": take("conv_preds/bias")}
    classes = len(head)
    if generator.condition_features not in (0, classes):
        raise CheckpointError(
            f"{take.what}: tells {classes} classes apart, "
            f"the generator is told of {generator.condition_features}"
        )
    options: dict[str, Any] = {"widths": widths, "bounded": _is_bounded(place)}
    network = MobileNetV1(classes, **options)
    _load(network, state, take.what)
    names = tuple(f"class {index}" for index in range(classes))
    resolution = 4 << (len(generator.synthesis.noise_shapes()) // 2)
    return Classifier(
        network, class_names=names, input_size=resolution, architecture="mobilenet_v1", options=options
    ).freeze()


def _norm(take: _Taken, theirs: str, ours: str) -> dict[str, Tensor]:
    names = {
        "gamma": "weight",
        "beta": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    }
    found = {f"{ours}.normalisation.{name}": take(f"{theirs}/{key}") for key, name in names.items()}
    return found | {f"{ours}.normalisation.num_batches_tracked": torch.tensor(0)}


def _is_bounded(place: Path) -> bool:
    """Whether the graph has ReLU with a ceiling of 6, as Keras's MobileNet has; so without a graph."""
    graph = place / "saved_model.pb"
    return not graph.exists() or b"Relu6" in (content := graph.read_bytes()) or b"Relu" not in content


def _load(network: torch.nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    own = network.state_dict()
    strange = sorted(own.keys() ^ state.keys())
    other = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    if strange or other:
        raise CheckpointError(
            f"{what}: {(strange or sorted(other))[0]} does not fit; is this Keras's MobileNet?"
        )
    if not all(bool(value.isfinite().all()) for value in state.values()):
        raise CheckpointError(f"{what}: holds NaN or infinity")
    network.load_state_dict(dict(state))
