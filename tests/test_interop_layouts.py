"""Both checkpoint layouts against the numbers that the originals gave, and what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

import golden
from stylex.errors import CheckpointError
from stylex.interop import rosinality, stylegan2_ada
from stylex.networks import Discriminator, Generator, Mapping

Golden = dict[str, Tensor]


@pytest.fixture(scope="module")
def ada() -> Golden:
    return golden.load("stylegan2_ada")


@pytest.fixture(scope="module")
def rosi() -> Golden:
    return golden.load("rosinality")


def converted(layout: ModuleType, tensors: Golden) -> tuple[Generator, Mapping, Discriminator]:
    generator, mapping = layout.convert_generator(golden.section(tensors, "G."))
    discriminator = layout.convert_discriminator(golden.section(tensors, "D."))
    return (
        generator.requires_grad_(False),
        mapping.requires_grad_(False),
        discriminator.requires_grad_(False),
    )


def test_ada_shapes_are_inferred(ada: Golden) -> None:
    generator, mapping, discriminator = converted(stylegan2_ada, ada)
    assert generator.synthesis.resolution == 32
    assert [place.channels for place in generator.synthesis.layout] == [32] * 9 + [16] * 2
    assert (mapping.z_features, mapping.w_features, len(mapping.layers)) == (24, 24, 3)
    assert (generator.latent_features, generator.condition_features) == (24, 0)
    assert (len(discriminator.blocks), discriminator.deviation_group) == (3, 4)


def test_ada_latents_with_and_without_truncation(ada: Golden) -> None:
    _, mapping, _ = converted(stylegan2_ada, ada)
    assert ada["w"].shape == (3, 8, 24)
    for layer in range(8):
        golden.assert_equal(mapping(ada["z"]), ada["w"][:, layer])
        golden.assert_equal(mapping(ada["z"], truncation=0.7), ada["w_psi07"][:, layer])


def test_ada_styles_layer_by_layer(ada: Golden) -> None:
    generator, _, _ = converted(stylegan2_ada, ada)
    theirs = [key for key in ada if key.startswith("style.")]
    for latents in (ada["w"], ada["w"][:, 0]):
        styles = generator.styles(latents)
        assert len(theirs) == len(generator.synthesis.layout)
        for place, key in zip(generator.synthesis.layout, theirs, strict=True):
            golden.assert_equal(styles[:, place.slice], ada[key])


@pytest.mark.parametrize(("noise", "key"), [("fixed", "image_noise_const"), ("none", "image_noise_none")])
def test_ada_images(ada: Golden, noise: str, key: str) -> None:
    generator, mapping, _ = converted(stylegan2_ada, ada)
    golden.assert_equal(generator(mapping(ada["z"]), noise), ada[key])


def test_ada_scores(ada: Golden) -> None:
    _, _, discriminator = converted(stylegan2_ada, ada)
    golden.assert_equal(discriminator(ada["image_noise_const"]), ada["d_logits"])


def test_rosinality_latents_styles_images_and_scores(rosi: Golden) -> None:
    generator, mapping, discriminator = converted(rosinality, rosi)
    w = mapping(rosi["z"])
    golden.assert_equal(w, rosi["w"])
    styles = generator.styles(w)
    numbers = {"conv": 0, "rgb": 0}
    for place in generator.synthesis.layout:
        number = numbers[place.kind]
        numbers[place.kind] += 1
        first, others = {"conv": ("conv1", "convs"), "rgb": ("to_rgb1", "to_rgbs")}[place.kind]
        key = f"style.{first}" if number == 0 else f"style.{others}.{number - 1}"
        golden.assert_equal(styles[:, place.slice], rosi[key])
    assert numbers == {"conv": 7, "rgb": 4}
    golden.assert_equal(generator(w), rosi["image_stored_noise"])
    golden.assert_equal(discriminator(rosi["image_stored_noise"]), rosi["d_logits"])


def test_rosinality_mean_of_w_is_taken_or_estimated_the_same_way_each_time(rosi: Golden) -> None:
    state = golden.section(rosi, "G.")
    given = torch.randn(24)
    assert torch.equal(rosinality.convert_generator(state, given)[1].mean_w, given)
    _, mapping = rosinality.convert_generator(state)
    assert torch.equal(rosinality.convert_generator(state)[1].mean_w, mapping.mean_w)
    w = mapping(torch.randn(20000, 24)).detach()
    error = (mapping.mean_w - w.mean(dim=0)) / (w.std(dim=0) / 4096**0.5)
    assert float(error.abs().max()) < 5


@pytest.mark.parametrize("layout", [stylegan2_ada, rosinality])
def test_conversion_is_pure(layout: ModuleType, ada: Golden, rosi: Golden) -> None:
    tensors = ada if layout is stylegan2_ada else rosi
    copies = {key: value.clone() for key, value in tensors.items()}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    generator, mapping, discriminator = converted(layout, tensors)
    assert torch.equal(torch.get_rng_state(), before)
    for module in (generator, mapping, discriminator):
        for parameter in module.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(tensors[key], value) for key, value in copies.items())


Change = Callable[[Golden], object]
CASES: list[tuple[str, str, Change, str]] = [
    (
        "ada",
        "G",
        lambda s: s.pop("synthesis.b16.conv0.noise_const"),
        r"missing synthesis\.b16\.conv0\.noise_const",
    ),
    ("ada", "G", lambda s: s.pop("mapping.w_avg"), r"missing mapping\.w_avg"),
    ("ada", "G", lambda s: s.pop("synthesis.b8.conv1.weight"), r"missing key synthesis\.b8\.conv1\.weight"),
    (
        "ada",
        "G",
        lambda s: s.update({"mapping.embed.weight": torch.zeros(2)}),
        r"unexpected mapping\.embed\.weight",
    ),
    ("ada", "G", lambda s: s.update({"synthesis.b8.skip.weight": torch.zeros(2)}), r"unexpected .*b8\.skip"),
    (
        "ada",
        "G",
        lambda s: s.update({"mapping.fc1.weight": torch.zeros(9, 24)}),
        r"mapping\.fc1\.weight .*\[9, 24\]",
    ),
    ("ada", "G", lambda s: [s.pop(key) for key in list(s) if ".b16." in key], r"\[4, 8, 32\]"),
    ("ada", "G", lambda s: s["synthesis.b8.conv0.bias"].fill_(float("nan")), r"b8\.conv0\.bias holds NaN"),
    (
        "ada",
        "G",
        lambda s: s["synthesis.b8.conv0.resample_filter"].fill_(1 / 16),
        r"b8\.conv0\.resample_filter",
    ),
    ("ada", "G", lambda s: s.clear(), r"resolutions \[\]"),
    ("ada", "D", lambda s: s.pop("b16.skip.weight"), r"missing b16\.skip\.weight"),
    (
        "ada",
        "D",
        lambda s: s.update({"mapping.fc0.weight": torch.zeros(2)}),
        r"unexpected mapping\.fc0\.weight",
    ),
    (
        "ada",
        "D",
        lambda s: s.update({"b4.conv.weight": torch.zeros(32, 36, 3, 3)}),
        r"b4\.conv\.weight reads 4",
    ),
    (
        "ada",
        "D",
        lambda s: s.update({"b4.fc.weight": torch.zeros(30, 512)}),
        r"b4\.fc\.weight .*expected \[32, 512\]",
    ),
    ("rosi", "G", lambda s: s.pop("noises.noise_3"), r"missing noises\.noise_3"),
    ("rosi", "G", lambda s: s.pop("style.2.bias"), r"missing style\.2\.bias"),
    ("rosi", "G", lambda s: s.update({"extra": torch.zeros(1)}), r"unexpected extra"),
    (
        "rosi",
        "G",
        lambda s: s.update({"convs.3.noise.weight": torch.zeros(2)}),
        r"convs\.3\.noise\.weight has shape",
    ),
    ("rosi", "G", lambda s: s["to_rgbs.0.upsample.kernel"].fill_(1), r"to_rgbs\.0\.upsample\.kernel is not"),
    (
        "rosi",
        "G",
        lambda s: s.update({"conv1.conv.weight": torch.zeros(4)}),
        r"conv1\.conv\.weight has shape \[4\]",
    ),
    ("rosi", "D", lambda s: s.pop("final_linear.1.bias"), r"missing final_linear\.1\.bias"),
    (
        "rosi",
        "D",
        lambda s: s.update({"convs.1.skip.2.bias": torch.zeros(1)}),
        r"unexpected convs\.1\.skip\.2\.bias",
    ),
    (
        "rosi",
        "D",
        lambda s: s["final_conv.1.bias"].fill_(float("inf")),
        r"final_conv\.1\.bias holds NaN or infinity",
    ),
]


@pytest.mark.parametrize(("layout", "part", "change", "message"), CASES)
def test_what_does_not_fit_is_named(
    ada: Golden, rosi: Golden, layout: str, part: str, change: Change, message: str
) -> None:
    module, tensors = {"ada": (stylegan2_ada, ada), "rosi": (rosinality, rosi)}[layout]
    state = {key: value.clone() for key, value in golden.section(tensors, f"{part}.").items()}
    change(state)
    convert = module.convert_generator if part == "G" else module.convert_discriminator
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(state)
    assert "\n" not in str(caught.value)


def test_a_discriminator_without_minibatch_deviation(ada: Golden) -> None:
    state = golden.section(ada, "D.")
    state["b4.conv.weight"] = state["b4.conv.weight"][:, :-1]
    discriminator = stylegan2_ada.convert_discriminator(state)
    assert discriminator.deviation_group == 0
    scores = discriminator(ada["image_noise_const"])
    torch.testing.assert_close(scores[:1], discriminator(ada["image_noise_const"][:1]))


def test_half_precision_weights_are_read(ada: Golden) -> None:
    state = {key: value.half() for key, value in golden.section(ada, "D.").items()}
    discriminator = stylegan2_ada.convert_discriminator(state)
    assert {parameter.dtype for parameter in discriminator.parameters()} == {torch.float32}
    scores = discriminator(ada["image_noise_const"])
    torch.testing.assert_close(scores, ada["d_logits"], rtol=0, atol=5e-3)
