"""How tests/data/stylex_tf was made, with TensorFlow 2.21 and tf_keras in an environment of their own.

    python tests/make_tensorflow_models.py tests/data

Names of variables are those of the authors' released model (as public converters of it list them). The
generator and the discriminator hold the weights of the golden StyleGAN2-ADA networks, so that images and
scores are known; the MobileNet is Keras's own, and its logits are kept beside it.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf
import tf_keras

CLASSES = 2


class Network(tf.Module):
    """Variables of given names, in a tree of attributes as a Keras model has."""

    def __init__(self, values: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.layers = [tf.Variable(value.astype(np.float32), name=name) for name, value in values.items()]


def conv(weight: np.ndarray) -> np.ndarray:
    """OIHW → HWIO."""
    return weight.transpose(2, 3, 1, 0)


def generator(ada: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {"dlatent_avg": ada["mapping.w_avg"]}
    depth = len([key for key in ada if key.startswith("mapping.fc") and key.endswith("weight")])
    for i in range(depth):
        found[f"generator/generator_mapping/Dense{i}/MappingDense_{i}"] = ada[f"mapping.fc{i}.weight"].T
        found[f"generator/generator_mapping/DenseBiasAct{i}/MappingBias_{i}"] = ada[f"mapping.fc{i}.bias"][
            None
        ]
    synthesis = "generator_synthesis"
    found[f"{synthesis}/ConstBlock4x4/Const4x4"] = ada["synthesis.b4.const"][None]
    size, noise = 4, 0
    while f"synthesis.b{size}.conv1.weight" in ada:
        level = int(math.log2(size)) - 3
        layers = [("conv1", f"{synthesis}/ConstBlock4x4/GeneratorLayer4x4", "StyleVectorConst")]
        rgb = "StyleVectorConstRGB"
        if size > 4:
            block = f"{synthesis}/GeneratorBlock{size}x{size}"
            layers = [("conv0", f"{block}/Conv0Up", f"StyleVector{level}_0")]
            layers += [("conv1", f"{block}/Conv1", f"StyleVector{level}_1")]
            rgb = f"StyleVectorRGB{level}"
        for part, theirs, style in layers:
            ours = f"synthesis.b{size}.{part}"
            weight = conv(ada[f"{ours}.weight"])
            found[f"{theirs}/ModulatedConv2D/weight"] = weight[::-1, ::-1] if part == "conv0" else weight
            found[f"{theirs}/FusedBiasAct/BiasAct"] = ada[f"{ours}.bias"][None, :, None, None]
            found[f"{theirs}/NoiseStrength"] = ada[f"{ours}.noise_strength"].reshape(1)
            found[f"Noise{noise}"] = ada[f"{ours}.noise_const"][None, None]
            found |= affine(ada, ours, style)
            noise += 1
        ours, theirs = f"synthesis.b{size}.torgb", f"{synthesis}/ToRGB{size}x{size}"
        found[f"{theirs}/ModulatedConv2D/weight"] = conv(ada[f"{ours}.weight"])
        found[f"{theirs}/FusedBiasActivation/ToRGBBiasAct"] = ada[f"{ours}.bias"][None, :, None, None]
        found |= affine(ada, ours, rgb)
        size *= 2
    return found


def affine(ada: dict[str, np.ndarray], ours: str, style: str) -> dict[str, np.ndarray]:
    """Weights [W + K, C] that do not look at the K class inputs; the gain 1/√(W + K) is undone."""
    weight = ada[f"{ours}.affine.weight"].T
    width = len(weight)
    scaled = np.concatenate(
        [weight * math.sqrt((width + CLASSES) / width), np.zeros((CLASSES, weight.shape[1]))]
    )
    prefix = f"generator_style_calculator/{style}"
    return {
        f"{prefix}/StyleGAN2Dense/weight": scaled,
        f"{prefix}/FusedBiasActivation/bias": ada[f"{ours}.affine.bias"][None] - 1,
    }


def residual(
    ada: dict[str, np.ndarray], scope: str, mark: str, dense: str, outputs: int
) -> dict[str, np.ndarray]:
    size = max(int(key.split(".")[0][1:]) for key in ada if key.endswith("fromrgb.weight"))
    rgb = f"{scope}/{mark}FromRGB{size}x{size}"
    found = {
        f"{rgb}/StyleGAN2Conv2D/weight": conv(ada[f"b{size}.fromrgb.weight"]),
        f"{rgb}/FusedBiasActivation/FromRGBBias": ada[f"b{size}.fromrgb.bias"][None, :, None, None],
        f"{scope}/Conv4x4/weight": conv(ada["b4.conv.weight"]),
        f"{scope}/{mark}ConvBiasAct4x4/ConvBiasAct4x4": ada["b4.conv.bias"][None, :, None, None],
        f"{scope}/{mark}Dense4x4/weight": ada["b4.fc.weight"].T,
        f"{scope}/{mark}DenseBiasAct4x4/DenseBiasAct4x4": ada["b4.fc.bias"][None],
        f"{scope}/{dense}/weight": np.repeat(ada["b4.out.weight"].T, outputs, axis=1),
        f"{scope}/{mark}OutputBiasAct/OutputBiasAct": np.repeat(ada["b4.out.bias"][None], outputs, axis=1),
    }
    while size > 4:
        block = f"{scope}/{mark or 'Discriminator'}Block{size}x{size}"
        found |= {
            f"{block}/Conv0/weight": conv(ada[f"b{size}.conv0.weight"]),
            f"{block}/Conv0Bias/BiasAct0": ada[f"b{size}.conv0.bias"][None, :, None, None],
            f"{block}/Conv1Down/weight": conv(ada[f"b{size}.conv1.weight"]),
            f"{block}/Conv1DownBiasAct/BiasAct1": ada[f"b{size}.conv1.bias"][None, :, None, None],
            f"{block}/Skip/weight": conv(ada[f"b{size}.skip.weight"]),
        }
        size //= 2
    return found


def main(data: Path) -> None:
    with np.load(data / "stylegan2_ada_tiny.npz") as archive:
        golden = {key: archive[key] for key in archive.files}
    g = {key[2:]: value for key, value in golden.items() if key.startswith("G.")}
    d = {key[2:]: value for key, value in golden.items() if key.startswith("D.")}
    out = data / "stylex_tf"
    tf.saved_model.save(Network(generator(g)), str(out / "generator.savedmodel"))
    scores = residual(d, "discriminator_1", "", "style_gan2_dense_4", CLASSES)
    tf.saved_model.save(Network(scores), str(out / "discriminator.savedmodel"))
    # The encoder reads no standard deviation and gives w: the golden network without its extra channel.
    width = golden["w"].reshape(len(golden["z"]), -1)[:, : g["mapping.w_avg"].size].shape[1]
    d["b4.conv.weight"] = d["b4.conv.weight"][:, :-1]
    d["b4.out.bias"] = np.linspace(-1, 1, width).astype(np.float32)[:, None][:1, 0]
    encoded = residual(d, "encoder", "Encoder", "style_gan2_dense", width)
    encoded["encoder/style_gan2_dense/weight"] *= np.linspace(-1, 1, width)[None]
    tf.saved_model.save(Network(encoded), str(out / "encoder.savedmodel"))
    tf.random.set_seed(0)
    mobilenet = tf_keras.applications.MobileNet(
        input_shape=(32, 32, 3), alpha=0.0625, weights=None, classes=CLASSES, classifier_activation=None
    )
    random = np.random.default_rng(0)
    for layer in mobilenet.layers:  # statistics as training would leave them
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            shape = layer.get_weights()[0].shape
            layer.set_weights(
                [
                    random.uniform(0.5, 2, shape),
                    random.normal(0, 0.3, shape),
                    random.normal(0, 0.1, shape),
                    random.uniform(0.02, 0.2, shape),
                ]
            )
    mobilenet.save(str(out / "mobilenet.savedmodel"), save_format="tf")
    images = random.uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    np.savez(out / "mobilenet.npz", images=images, logits=mobilenet.predict(images, verbose=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
