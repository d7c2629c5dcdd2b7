"""Latents, styles and synthesis as a whole: order, reuse, noise, number formats."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from stylex.config import load_recipe
from stylex.networks import Discriminator, Encoder, Generator, Synthesis, build
from stylex.networks.generator import Noise

CHANNELS = {4: 6, 8: 5, 16: 4}


def small_generator(seed: int = 0) -> Generator:
    """16 px, 3 + 2 latent numbers; noise and biases active."""
    torch.manual_seed(seed)
    generator = Generator(3, 2, 16, CHANNELS)
    for name, parameter in generator.named_parameters():
        if name.endswith(("bias", "noise_strength")) and name != "affine_bias":
            torch.nn.init.normal_(parameter, std=0.3)
    return generator.requires_grad_(False)


@pytest.fixture
def generator() -> Generator:
    return small_generator()


def test_style_vector_holds_every_layer_once_in_order(generator: Generator) -> None:
    layout = generator.synthesis.layout
    assert [place.name for place in layout] == [
        *("4px.conv1", "4px.rgb", "8px.conv0", "8px.conv1", "8px.rgb", "16px.conv0", "16px.conv1", "16px.rgb")
    ]
    assert [place.channels for place in layout] == [6, 6, 6, 5, 5, 5, 4, 4]
    assert [place.w_index for place in layout] == [0, 1, 1, 2, 3, 3, 4, 5]
    assert generator.synthesis.w_count == 6
    covered = [index for place in layout for index in range(generator.synthesis.style_size)[place.slice]]
    assert covered == list(range(generator.synthesis.style_size)) == list(range(41))
    assert generator.synthesis.noise_shapes() == [4, 8, 8, 16, 16]


def test_one_latent_a_layer_equals_a_shared_one_when_all_are_equal(generator: Generator) -> None:
    latents = torch.randn(4, 5)
    repeated = latents[:, None].expand(-1, generator.synthesis.w_count, -1)
    assert_close(generator.styles(repeated), generator.styles(latents))


def test_a_latent_of_one_layer_moves_only_its_layers(generator: Generator) -> None:
    latents = torch.randn(1, 6, 5)
    before = generator.styles(latents)
    latents[:, 3] += 1.0
    changed = (generator.styles(latents) != before)[0]
    expected = [place.w_index == 3 for place in generator.synthesis.layout for _ in range(place.channels)]
    assert changed.tolist() == expected


def test_every_style_reaches_the_image(generator: Generator) -> None:
    styles = generator.styles(torch.randn(1, 5)).requires_grad_()
    (gradient,) = torch.autograd.grad(generator.synthesis(styles).square().sum(), styles)
    assert bool((gradient != 0).all())


def test_finishing_from_every_state_equals_the_whole_pass(generator: Generator) -> None:
    styles = generator.styles(torch.randn(3, 5))
    whole = generator.synthesis(styles)
    states = list(generator.synthesis.states(styles))
    assert [state.layer for state in states] == list(range(len(generator.synthesis.layout) + 1))
    for state in states:
        assert torch.equal(generator.synthesis.finish(state, styles), whole)


@pytest.mark.parametrize("layer", range(8))
def test_a_state_serves_edits_of_the_layers_after_it(generator: Generator, layer: int) -> None:
    styles = generator.styles(torch.randn(3, 5))
    state = list(generator.synthesis.states(styles))[layer]
    rows = torch.tensor([2, 0, 2, 1])
    edited = styles[rows].clone()
    edited[:, generator.synthesis.layout[layer].offset] += torch.tensor([1.0, -1.0, 2.0, 0.5])
    finished = generator.synthesis.finish(state.select(rows), edited)
    assert_close(finished, generator.synthesis(edited), rtol=1e-5, atol=1e-5)
    assert bool(((finished - generator.synthesis(styles)[rows]).abs().amax(dim=(1, 2, 3)) > 1e-4).all())


def test_an_image_does_not_depend_on_its_batch(generator: Generator) -> None:
    styles = generator.styles(torch.randn(5, 5))
    single = torch.cat([generator.synthesis(style[None]) for style in styles])
    assert_close(generator.synthesis(styles), single, rtol=1e-5, atol=1e-5)


def test_noise_fixed_random_none_and_given(generator: Generator) -> None:
    synthesis = generator.synthesis
    styles = generator.styles(torch.randn(2, 5))
    stored = [tensor for name, tensor in synthesis.named_buffers() if name.endswith("fixed_noise")]
    fixed = synthesis(styles)
    assert torch.equal(fixed, synthesis(styles))
    assert torch.equal(fixed, synthesis(styles, "none", noise_maps=stored))
    zeros = [torch.zeros_like(tensor) for tensor in stored]
    assert_close(synthesis(styles, "none"), synthesis(styles, noise_maps=zeros))
    torch.manual_seed(1)
    random = synthesis(styles, "random")
    assert float((random - synthesis(styles, "random")).abs().max()) > 1e-2
    torch.manual_seed(1)
    assert torch.equal(random, synthesis(styles, "random"))
    same = styles[:1].expand(2, -1)
    torch.manual_seed(1)
    first, second = synthesis(same, "random")
    assert float((first - second).abs().max()) > 1e-2


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).square().mean().sqrt() / reference.square().mean().sqrt())


@torch.no_grad()
def test_bf16_stays_close_to_fp32_and_comes_out_as_fp32(generator: Generator) -> None:
    latents = torch.randn(4, 5)
    images = generator(latents)
    networks = {
        "discriminator": Discriminator(16, CHANNELS, 3),
        "encoder": Encoder(16, CHANNELS, 7, hidden=9),
    }
    outputs = {name: network(images) for name, network in networks.items()}
    for module in (generator.synthesis, *networks.values()):
        module.compute_dtype = torch.bfloat16
    half = generator(latents)
    assert half.dtype == torch.float32
    assert 1e-5 < relative_error(half, images) < 0.02
    for name, network in networks.items():
        scores = network(images)
        assert scores.dtype == torch.float32
        assert 1e-5 < relative_error(scores, outputs[name]) < 0.03, name


def test_built_weights_depend_on_the_seed_alone() -> None:
    recipe = load_recipe(
        "stylex", ["network.channel_base=64", "network.channel_max=8", "network.latent_features=6"]
    )
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(recipe, 16, classes=2, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second, other = build(recipe, 16, classes=2, seed=3), build(recipe, 16, classes=2, seed=4)
    for name, part in first.parts().items():
        for key, value in part.state_dict().items():
            assert torch.equal(value, second.parts()[name].state_dict()[key]), f"{name}.{key}"
    assert not torch.equal(first.generator.affine_weight, other.generator.affine_weight)
    assert first.generator.affine_weight.shape[1] == 6 + 2


def test_synthesis_starts_at_its_constant() -> None:
    synthesis = Synthesis(8, {4: 2, 8: 2})
    state = synthesis.start(3)
    assert state.image is None
    assert torch.equal(state.features, synthesis.constant.expand(3, -1, -1, -1))


@pytest.mark.parametrize("noise", ["random", "fixed", "none"])
def test_features_stay_channels_last(noise: Noise) -> None:
    """One map in another layout, and all that follows on a CPU takes several times as long."""
    generator = small_generator().to(memory_format=torch.channels_last)
    styles = generator.styles(torch.randn(3, generator.affine_weight.shape[1]))
    for state in generator.synthesis.states(styles, noise):
        assert state.features.is_contiguous(memory_format=torch.channels_last), state.layer
