"""Foreign models as runs, AttFind on them, and our generator back in other formats; the released StylEx."""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import golden
import training_problems
from stylex.classifiers import Classifier
from stylex.classifiers.architectures import build as build_classifier
from stylex.cli.app import main
from stylex.errors import CheckpointError, ClassifierError, ConfigError, StylexError
from stylex.interop import load_stylegan2, stylegan2_ada
from stylex.interop.conversion import convert, export, to_stylegan2_ada
from stylex.interop.stylex_tf import load_released
from stylex.interop.tensor_bundle import read_variables
from stylex.model import load_model
from stylex.run import Run

DATA = Path(__file__).parent / "data"
RELEASED = DATA / "stylex_tf"
CPU = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]


@pytest.fixture(scope="module")
def ada() -> dict[str, Tensor]:
    return golden.load("stylegan2_ada")


@pytest.fixture(scope="module")
def rosi() -> dict[str, Tensor]:
    return golden.load("rosinality")


def save(path: Path, tensors: dict[str, Tensor], *, encoder: bool = False) -> Path:
    """A `.pt` file as rosinality (or the study, with an encoder of 22 numbers) writes it."""
    scorer = golden.section(tensors, "D.")
    content: dict[str, Any] = {
        "g_ema": golden.section(tensors, "G."),
        "d": scorer,
        "args": argparse.Namespace(),
    }
    if encoder:
        plain = dict(scorer)
        plain["final_conv.0.weight"] = scorer["final_conv.0.weight"][:, :-1]
        width = scorer["final_linear.1.weight"].shape[1]
        plain["final_linear.1.weight"] = torch.linspace(-1, 1, 22)[:, None] * torch.ones(1, width)
        plain["final_linear.1.bias"] = torch.zeros(22)
        content["e"] = plain
    torch.save(content, path)
    return path


def judge(classes: int = 2) -> Classifier:
    torch.manual_seed(0)
    network = build_classifier("small_cnn", classes, {})
    names = tuple("abcdef"[:classes])
    return Classifier(network, class_names=names, input_size=32, architecture="small_cnn").freeze()


def opened(run: Run) -> Any:
    return load_model(Run.open(run.path), training_problems.HARDWARE)


# -- runs of StyleGAN2 ------------------------------------------------------------------------------------


def test_a_converted_stylegan2_draws_the_golden_images(rosi: dict[str, Tensor], tmp_path: Path) -> None:
    file = save(tmp_path / "g.pt", rosi)
    run = convert(file, tmp_path / "run", judge(), classifier_source="c", data="")
    model = opened(run)
    w = model.mapping(rosi["z"])
    golden.assert_equal(model.generator(w, "fixed"), rosi["image_stored_noise"])
    assert model.encoder is None
    assert model.noise == "fixed"
    assert model.discriminator is not None
    assert run.config.recipe.network.channels_each == (16, 16, 16, 16)
    assert model.sample(3, 0).shape == (3, 24)


def test_attfind_and_a_report_on_a_plain_stylegan2(
    rosi: dict[str, Tensor],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stylex.attfind.discovery.SAMPLED_POOL", 40)
    monkeypatch.setattr("stylex.evaluation.measure.SAMPLED", 12)
    save(tmp_path / "g.pt", rosi)
    classifier = judge()
    source = load_stylegan2(tmp_path / "g.pt")
    assert source.mapping is not None
    with torch.no_grad():  # a boundary through the middle of what it draws
        images = source.generator(source.mapping(torch.randn(64, 24)), "fixed").clamp(-1, 1)
        margin = classifier(images)[:, 1] - classifier(images)[:, 0]
        classifier.network.head.bias[1] -= margin.median()  # type: ignore[union-attr, index, operator]
    classifier.save(tmp_path / "c.safetensors")
    run = tmp_path / "run"
    for line in (
        ["convert", tmp_path / "g.pt", "--classifier", tmp_path / "c.safetensors", "--out", run],
        ["attfind", run, "--images", "1", "--set", "unstable_threshold=null", "--set", "count=2", *CPU],
        ["report", run, "--attributes", "1", "--pairs", "1", *CPU],
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(part) for part in line])
        assert ended.value.code == 0, capfd.readouterr().err
    assert (run / "report.html").stat().st_size > 10_000


def test_the_studys_checkpoint(rosi: dict[str, Tensor], tmp_path: Path) -> None:
    file = save(tmp_path / "study.pt", rosi, encoder=True)
    run = convert(file, tmp_path / "run", judge(), classifier_source="c", data="faces")
    model = opened(run)
    assert (model.generator.latent_features, model.generator.condition_features) == (22, 2)
    assert (model.mapping, run.config.recipe.network.condition) == (None, "logits")
    golden.assert_equal(model.generator(rosi["w"].reshape(-1, 24), "fixed"), rosi["image_stored_noise"])
    latents, logits = model.encode(rosi["image_stored_noise"])
    assert latents.shape[1] == 24
    assert torch.equal(latents[:, 22:], logits)


@pytest.mark.parametrize(
    ("classes", "data", "message"),
    [(3, "faces", "told of 2 classes, the classifier has 3"), (2, "", "name images to explain with --data")],
)
def test_bad_conversions(
    classes: int, data: str, message: str, rosi: dict[str, Tensor], tmp_path: Path
) -> None:
    file = save(tmp_path / "study.pt", rosi, encoder=True)
    with pytest.raises(StylexError, match=message):
        convert(file, tmp_path / "run", judge(classes), classifier_source="c", data=data)
    assert not (tmp_path / "run").exists()


def test_no_classifier_and_no_source(rosi: dict[str, Tensor], tmp_path: Path) -> None:
    file = save(tmp_path / "g.pt", rosi)
    with pytest.raises(ClassifierError, match="say with --classifier what is to be explained"):
        convert(file, tmp_path / "run", None, classifier_source="", data="")
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        convert(tmp_path, tmp_path / "run", judge(), classifier_source="c", data="")


# -- conditional StyleGAN2-ADA ----------------------------------------------------------------------------

CLASSES = 3

Told = tuple[dict[str, dict[str, Tensor]], Path]
"""Entries of the networks of a conditional StyleGAN2-ADA, and its file."""


def their_mapping(state: dict[str, Tensor], z: Tensor | None, label: Tensor) -> Tensor:
    """StyleGAN2-ADA's mapping network as its code has it: z [N, Z] (D has none), one-hot labels [N, C]."""

    def layer(features: Tensor, name: str, rate: float) -> Tensor:
        weight, bias = state[f"mapping.{name}.weight"], state[f"mapping.{name}.bias"]
        return F.linear(features, weight * (rate / math.sqrt(weight.shape[1])), bias * rate)

    def normalised(features: Tensor) -> Tensor:
        return features * (features.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()

    features = normalised(layer(label, "embed", 1.0))
    if z is not None:
        features = torch.cat([normalised(z), features], dim=1)
    for number in range(sum(key.startswith("mapping.fc") for key in state) // 2):
        features = F.leaky_relu(layer(features, f"fc{number}", 0.01), 0.2) * math.sqrt(2)
    return features


def one_hot(label: int, count: int) -> Tensor:
    return F.one_hot(torch.full((count,), label), CLASSES).float()


def conditional_scorer(scorer: dict[str, Tensor], width: int = 12) -> dict[str, Tensor]:
    """D's entries where it is told of classes: `width` numbers, and a mapping of two layers to project on."""
    random = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    layers = {f"mapping.fc{number}.weight": 100 * drawn(width, width) for number in range(2)}
    layers |= {f"mapping.fc{number}.bias": 10 * drawn(width) for number in range(2)}
    outputs = {"b4.out.weight": drawn(width, scorer["b4.out.weight"].shape[1]), "b4.out.bias": drawn(width)}
    embedding = {"mapping.embed.weight": drawn(width, CLASSES), "mapping.embed.bias": drawn(width)}
    return scorer | outputs | layers | embedding


@pytest.fixture
def told(ada: dict[str, Tensor], tmp_path: Path) -> Told:
    """A conditional StyleGAN2-ADA and its file."""
    networks = {
        "G_ema": golden.conditional(golden.section(ada, "G."), CLASSES),
        "D": conditional_scorer(golden.section(ada, "D.")),
    }
    torch.save(networks, tmp_path / "told.pt")
    return networks, tmp_path / "told.pt"


def test_a_conditional_generator_is_the_one_that_is_always_told_its_label(
    ada: dict[str, Tensor], told: Told
) -> None:
    networks, file = told
    drawn = []
    for label in range(CLASSES):
        found = load_stylegan2(file, label)
        assert found.mapping is not None
        assert found.label == label
        w = their_mapping(networks["G_ema"], ada["z"], one_hot(label, len(ada["z"])))
        golden.assert_equal(found.mapping(ada["z"]), w)
        drawn.append(w)
    assert float((drawn[0] - drawn[1]).abs().max()) > 0.1  # the label matters
    assert float((drawn[1] - drawn[2]).abs().max()) > 0.1


def test_a_conditional_discriminator_gives_the_score_of_its_label(ada: dict[str, Tensor], told: Told) -> None:
    networks, file = told
    images = ada["image_noise_const"]
    plain = {key: value for key, value in networks["D"].items() if not key.startswith("mapping.")}
    outputs = stylegan2_ada.convert_discriminator(plain)(images)
    scores = []
    for label in range(CLASSES):
        projected = their_mapping(networks["D"], None, one_hot(label, len(images)))
        scores.append((outputs * projected).sum(dim=1, keepdim=True) / math.sqrt(outputs.shape[1]))
        discriminator = load_stylegan2(file, label).discriminator
        assert discriminator is not None
        golden.assert_equal(discriminator(images), scores[-1])
    assert float((scores[0] - scores[1]).abs().max()) > 0.01


def test_a_conditional_generator_is_converted_with_a_label_only(
    ada: dict[str, Tensor], told: Told, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    networks, file = told
    judge().save(tmp_path / "c.safetensors")
    run = tmp_path / "run"
    common = ["convert", str(file), "--classifier", str(tmp_path / "c.safetensors"), "--out", str(run)]
    for more, code, message in (
        ([], 1, f"{file}: its generator is conditional, told of 3 classes; expected is .* --label .* 0 to 2"),
        (["--label", "3"], 2, "--label 3: the generator is told of 3 classes; give 0 to 2"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*common, *more])
        out, err = capfd.readouterr()
        said = [line for line in err.splitlines() if line.startswith("stylex:")]
        assert (ended.value.code, out, len(said)) == (code, "", 1), err
        assert re.search(message, said[0])
        assert not run.exists()
    with pytest.raises(SystemExit) as ended:
        main([*common, "--label", "2", "--json"])
    out, err = capfd.readouterr()
    assert ended.value.code == 0, err
    assert json.loads(out)["label"] == 2
    converted = Run.open(run)
    assert converted.config.recipe.description.endswith("always told class 2.")
    z = ada["z"]
    w = their_mapping(networks["G_ema"], z, one_hot(2, len(z)))
    golden.assert_equal(opened(converted).mapping(z), w)


def test_a_label_for_a_generator_that_is_told_none(rosi: dict[str, Tensor], tmp_path: Path) -> None:
    for source in (save(tmp_path / "g.pt", rosi), RELEASED):
        with pytest.raises(ConfigError, match="--label 1: the generator is told of no classes; leave it out"):
            convert(source, tmp_path / "run", judge(), classifier_source="c", data="faces", label=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("G_ema", "mapping.embed.bias", torch.zeros(5), r"embed\.bias has shape \[5\], expected \[24\]"),
        ("G_ema", "mapping.embed.bias", None, r"missing key mapping\.embed\.bias"),
        ("G_ema", "mapping.fc0.weight", torch.zeros(24, 20), "reads 20 numbers, expected more than"),
        ("D", "mapping.embed.weight", torch.zeros(12, 1), "told of 1 classes, which have no label 1"),
        ("D", "mapping.fc1.bias", torch.zeros(7), r"mapping\.fc1\.bias has shape \[7\]"),
        ("D", "b4.out.bias", None, r"missing key b4\.out\.bias"),
    ],
)
def test_a_conditional_network_that_does_not_fit_is_named(
    part: str, key: str, value: Tensor | None, message: str, told: Told
) -> None:
    networks, file = told
    entries = networks[part] | ({} if value is None else {key: value})
    if value is None:
        del entries[key]
    torch.save(networks | {part: entries}, file)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_stylegan2(file, 1)
    assert str(caught.value).startswith(f"{file}: StyleGAN2-ADA ")
    assert "\n" not in str(caught.value)


# -- and back ---------------------------------------------------------------------------------------------


def test_the_ada_layout_comes_back_entry_by_entry(ada: dict[str, Tensor], tmp_path: Path) -> None:
    theirs = golden.section(ada, "G.")
    generator, mapping = stylegan2_ada.convert_generator(theirs)
    ours = to_stylegan2_ada(generator, mapping)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-7)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_an_exported_file_can_be_read_again(ending: str, ada: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"G_ema": golden.section(ada, "G.")}, tmp_path / "g.pt")
    run = convert(tmp_path / "g.pt", tmp_path / "run", judge(), classifier_source="c", data="")
    written = export(opened(run), "stylegan2-ada", tmp_path / f"back.{ending}")
    assert written["mapping"]
    again = load_stylegan2(tmp_path / f"back.{ending}")
    golden.assert_equal(
        again.generator(ada["w"].reshape(len(ada["z"]), -1)[:, :24]), ada["image_noise_const"]
    )


def test_a_generator_with_a_condition_leaves_its_mapping_out(tmp_path: Path) -> None:
    run = convert(RELEASED, tmp_path / "run", None, classifier_source="", data="faces")
    written = export(opened(run), "stylegan2-ada", tmp_path / "g.safetensors")
    assert not written["mapping"]
    entries = load_file(tmp_path / "g.safetensors")
    assert entries["G_ema.synthesis.b4.conv1.affine.weight"].shape == (32, 26)


def test_onnx_draws_the_same_images(ada: dict[str, Tensor], tmp_path: Path) -> None:
    import onnxruntime

    torch.save({"G_ema": golden.section(ada, "G.")}, tmp_path / "g.pt")
    run = convert(tmp_path / "g.pt", tmp_path / "run", judge(), classifier_source="c", data="")
    export(opened(run), "onnx", tmp_path / "g.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "g.onnx"), providers=["CPUExecutionProvider"])
    latents = ada["w"].reshape(len(ada["z"]), -1)[:, :24].numpy()
    images, styles = session.run(None, {"latents": latents})
    golden.assert_equal(torch.from_numpy(images), ada["image_noise_const"])
    assert styles.shape == (len(latents), opened(run).generator.synthesis.style_size)


def test_exports_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.onnx"):
        export(None, "onnx", tmp_path / "g.pt")
    with pytest.raises(ConfigError, match="choose from stylegan2-ada, onnx"):
        export(None, "keras", tmp_path / "g.h5")


# -- the released StylEx ----------------------------------------------------------------------------------


def test_the_released_layout_gives_the_golden_images_and_scores(ada: dict[str, Tensor]) -> None:
    found = load_released(RELEASED)
    w = found.mapping(ada["z"])
    golden.assert_equal(w, ada["w"].reshape(len(w), -1)[:, :24])
    latents = torch.cat([w, torch.rand(len(w), 2)], dim=1)
    golden.assert_equal(found.generator(latents, "fixed"), ada["image_noise_const"])
    assert found.discriminator is not None
    scores = found.discriminator(ada["image_noise_const"])
    golden.assert_equal(scores, ada["d_logits"].reshape(-1, 1).expand(-1, 2))


def test_the_released_mobilenet_answers_as_keras_does() -> None:
    classifier = load_released(RELEASED).classifier
    assert classifier is not None
    with np.load(RELEASED / "mobilenet.npz") as kept:
        images = torch.from_numpy(kept["images"]).permute(0, 3, 1, 2)
        golden.assert_equal(classifier(images), torch.from_numpy(kept["logits"]))
    assert classifier.exposes_features
    assert classifier.can_be_saved


def test_the_released_encoder_reads_images_as_the_entries_say() -> None:
    variables = read_variables(RELEASED / "encoder.savedmodel")
    encoder = load_released(RELEASED).encoder
    torch.testing.assert_close(
        encoder.blocks[0].skip.weight,  # type: ignore[union-attr]
        variables["encoder/EncoderBlock32x32/Skip/weight"].permute(3, 2, 0, 1),
    )
    torch.testing.assert_close(encoder.output.weight, variables["encoder/style_gan2_dense/weight"].T)
    torch.testing.assert_close(encoder.hidden.weight, variables["encoder/EncoderDense4x4/weight"].T)


def test_attfind_on_the_released_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "faces").mkdir()
    for number in range(60):
        shade = random.integers(0, 256, (1, 1, 3)) + random.integers(-60, 60, (32, 32, 3))
        Image.fromarray(shade.clip(0, 255).astype(np.uint8)).save(tmp_path / "faces" / f"{number}.png")
    run = tmp_path / "run"
    found = convert(RELEASED, run, None, classifier_source="", data=str(tmp_path / "faces"))
    model = opened(found)
    assert model.recipe.network.condition == "probabilities"
    images = found_images(tmp_path / "faces")
    latents, _ = model.encode(images)
    torch.testing.assert_close(latents[:, 24:].sum(dim=1), torch.ones(len(images)))
    with torch.no_grad():  # random weights call everything the same; a boundary through the middle
        for _ in range(3):
            latents, _ = model.encode(images)
            logits = model.classify(model.synthesise(model.styles(latents)))
            model.classifier.network.head.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    model.classifier.save(found.classifier_file)
    search = ["attfind", run, "--images", "2", "--set", "unstable_threshold=null", "--set", "count=2", *CPU]
    with pytest.raises(SystemExit) as ended:
        main([str(part) for part in search])
    assert ended.value.code == 0, capfd.readouterr().err


def found_images(folder: Path) -> Tensor:
    from stylex.data import load_dataset

    return load_dataset(folder, size=32, use_cache=False).discovery.batch(slice(None))


def copied(tmp_path: Path) -> Path:
    shutil.copytree(RELEASED, tmp_path / "released")
    return tmp_path / "released"


def test_damaged_saved_models(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    index = folder / "encoder.savedmodel" / "variables" / "variables.index"
    data = index.with_name("variables.data-00000-of-00001")
    whole = data.read_bytes()
    data.write_bytes(whole[:1000])
    with pytest.raises(CheckpointError, match="ends before byte"):
        load_released(folder)
    data.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_released(folder)
    data.write_bytes(whole)
    index.write_bytes(index.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="no whole index"):
        load_released(folder)
    shutil.rmtree(folder / "encoder.savedmodel")
    with pytest.raises(CheckpointError, match="holds no SavedModel encoder"):
        load_released(folder)


def test_a_saved_model_of_something_else(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    shutil.rmtree(folder / "generator.savedmodel")
    shutil.copytree(folder / "encoder.savedmodel", folder / "generator.savedmodel")
    with pytest.raises(CheckpointError, match="0 variables are called dlatent_avg, expected one"):
        load_released(folder)


def test_a_mobilenet_without_a_ceiling(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    (folder / "mobilenet.savedmodel" / "saved_model.pb").write_bytes(b"\x0a\x04Relu\x12")
    found = load_released(folder).classifier
    assert found is not None
    assert found.options["bounded"] is False
    (folder / "mobilenet.savedmodel" / "saved_model.pb").write_bytes(b"\x0a\x05Relu6\x12")
    again = load_released(folder).classifier
    assert again is not None
    assert again.options["bounded"] is True
