"""StyleGAN2's 'skip' generator, split where explanations need it: latents → styles → image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylex.networks.convolution import convolve, convolve_transposed
from stylex.networks.layers import SQRT2, at_least_float32, blur, conv_weight, energy, upsample2

Noise = Literal["fixed", "random", "none"]


@dataclass(frozen=True)
class StyleLayer:
    """Where one layer's style lies in the style vector.

    `kind` is "conv" (3 × 3 convolution, searchable) or "rgb"; the layer reads styles
    [:, offset : offset + channels] and, where every layer has a latent of its own, latent `w_index`.
    """

    name: str
    kind: Literal["conv", "rgb"]
    resolution: int
    offset: int
    channels: int
    w_index: int

    @property
    def slice(self) -> slice:
        return slice(self.offset, self.offset + self.channels)


@dataclass(frozen=True)
class SynthesisState:
    """Activations before layer number `layer`: features [N, C, H, W], image so far [N, 3, H, W] or None."""

    layer: int
    features: Tensor
    image: Tensor | None

    def select(self, indices: Tensor) -> SynthesisState:
        image = None if self.image is None else self.image[indices]
        return SynthesisState(self.layer, self.features[indices], image)


class StyledConv(nn.Module):
    """Modulated 3 × 3 convolution with demodulation, noise, bias and leaky ReLU.

    Scales the activations before and after one convolution shared by the batch, which is equal to scaling the
    weights for every image (Karras et al. 2020, equations 1 and 3) and an order of magnitude faster on CPUs.
    The equalised learning rate's gain on the weights cancels between convolution and demodulation, so neither
    applies it, and ε is scaled in its place: nothing passes over the weights to multiply them.
    With `up`, a transposed convolution at the low resolution is followed by the FIR filter. The activation's
    √2 is folded into the demodulation, the noise and the bias.
    """

    fixed_noise: Tensor

    def __init__(self, in_channels: int, out_channels: int, resolution: int, *, up: bool) -> None:
        super().__init__()
        self.weight = conv_weight(out_channels, in_channels, 3)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("fixed_noise", torch.randn(1, 1, resolution, resolution))
        self.epsilon = 1e-8 * in_channels * 9  # 1e-8 over the square of the gain, 1 / √(9 · in_channels)
        self.resolution = resolution
        self.up = up

    def demodulation(self, style: Tensor) -> Tensor:
        """1 / σ of every output channel, σ of the weights as stored: [N, in_channels] → [N, out_channels]."""
        return torch.rsqrt(F.linear(style.square(), energy(self.weight)) + self.epsilon)

    def convolve(self, modulated: Tensor) -> Tensor:
        """The convolution (and up-sampling) alone, of features already multiplied by the style."""
        weight = self.weight.to(modulated.dtype)
        if self.up:
            return blur(convolve_transposed(modulated, weight.transpose(0, 1)), padding=1, gain=4.0)
        return convolve(modulated, weight, padding=1)

    def activate(self, convolved: Tensor, demodulation: Tensor, noise: Tensor | None) -> Tensor:
        """Demodulate, add noise [N or 1, 1, H, W] and bias, leaky ReLU."""
        dtype = convolved.dtype
        shift = (self.bias * SQRT2).to(dtype)[None, :, None, None]
        scale = (demodulation * SQRT2).to(dtype)[:, :, None, None]
        found = torch.addcmul(shift, convolved, scale)
        if noise is not None:
            # By itself: together with the bias it would be a map of every channel, and not channels_last.
            found = found.add_((noise * (self.noise_strength * SQRT2)).to(dtype))
        return F.leaky_relu_(found, 0.2)

    def forward(self, features: Tensor, style: Tensor, noise: Tensor | None) -> Tensor:
        modulated = features * style.to(features.dtype)[:, :, None, None]
        return self.activate(self.convolve(modulated), self.demodulation(style), noise)


class ToRGB(nn.Module):
    """Modulated 1 × 1 convolution to colours, without demodulation, added to the up-sampled image so far."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.weight = conv_weight(3, in_channels, 1)
        self.bias = nn.Parameter(torch.zeros(3))
        self.weight_gain = 1.0 / math.sqrt(in_channels)

    def forward(self, features: Tensor, style: Tensor, image: Tensor | None) -> Tensor:
        modulated = features * style.to(features.dtype)[:, :, None, None]
        weight = (self.weight * self.weight_gain).to(features.dtype)
        colours = at_least_float32(convolve(modulated, weight, self.bias.to(features.dtype)))
        if image is None:
            return colours
        return colours + (upsample2(image) if image.shape[-1] < colours.shape[-1] else image)


class Synthesis(nn.Module):
    """Styles [N, T] → images [N, 3, R, R], in [-1, 1] once trained.

    The style vector holds the style of every layer in order, toRGB layers included: 4 px conv, 4 px rgb, then
    for each doubling conv (up), conv, rgb.

    Args:
        resolution: R, a power of two, at least 8.
        channels: feature channels of each resolution, from 4 to R.
    """

    def __init__(self, resolution: int, channels: dict[int, int]) -> None:
        super().__init__()
        self.resolution = resolution
        self.compute_dtype = torch.float32
        self.constant = nn.Parameter(torch.randn(1, channels[4], 4, 4))
        modules: list[nn.Module] = []
        layout: list[StyleLayer] = []
        offset = 0
        before = channels[4]

        def add(
            module: nn.Module, name: str, kind: Literal["conv", "rgb"], size: int, width: int, w: int
        ) -> None:
            nonlocal offset
            modules.append(module)
            layout.append(StyleLayer(name, kind, size, offset, width, w))
            offset += width

        w_index = 0
        for size in (2**power for power in range(2, int(math.log2(resolution)) + 1)):
            after = channels[size]
            if size > 4:
                add(
                    StyledConv(before, after, size, up=True), f"{size}px.conv0", "conv", size, before, w_index
                )
                w_index += 1
            name = f"{size}px.conv1"
            add(StyledConv(after, after, size, up=False), name, "conv", size, after, w_index)
            w_index += 1
            add(ToRGB(after), f"{size}px.rgb", "rgb", size, after, w_index)
            before = after
        self.layers = nn.ModuleList(modules)
        self.layout = tuple(layout)
        self.style_size = offset
        self.w_count = w_index + 1

    def start(self, count: int) -> SynthesisState:
        """The state before the first layer, for `count` images."""
        constant = self.constant.to(self.compute_dtype).expand(count, -1, -1, -1)
        return SynthesisState(0, constant.contiguous(memory_format=torch.channels_last), None)

    def step(
        self,
        state: SynthesisState,
        styles: Tensor,
        noise: Noise = "fixed",
        noise_maps: list[Tensor] | None = None,
    ) -> SynthesisState:
        """Run one layer on styles [N, T]; `noise_maps` (one a conv layer, in order) override `noise`."""
        place = self.layout[state.layer]
        module = self.layers[state.layer]
        style = styles[:, place.slice]
        if isinstance(module, StyledConv):
            if noise_maps is not None:
                layer_noise: Tensor | None = noise_maps[self._conv_number(state.layer)]
            elif noise == "fixed":
                layer_noise = module.fixed_noise
            elif noise == "random":
                size = module.resolution
                layer_noise = torch.randn(styles.shape[0], 1, size, size, device=styles.device)
            else:
                layer_noise = None
            features = module(state.features, style, layer_noise)
            return SynthesisState(state.layer + 1, features, state.image)
        return SynthesisState(state.layer + 1, state.features, module(state.features, style, state.image))

    def states(self, styles: Tensor, noise: Noise = "fixed") -> Iterator[SynthesisState]:
        """The state before every layer in turn, and last the one after all, for sweeps to reuse."""
        state = self.start(styles.shape[0])
        yield state
        while state.layer < len(self.layout):
            state = self.step(state, styles, noise)
            yield state

    def finish(
        self,
        state: SynthesisState,
        styles: Tensor,
        noise: Noise = "fixed",
        noise_maps: list[Tensor] | None = None,
    ) -> Tensor:
        """Run the layers from `state` to the end: images [N, 3, R, R], float32."""
        while state.layer < len(self.layout):
            state = self.step(state, styles, noise, noise_maps)
        assert state.image is not None
        return state.image

    def forward(
        self, styles: Tensor, noise: Noise = "fixed", noise_maps: list[Tensor] | None = None
    ) -> Tensor:
        """Styles [N, T] → images [N, 3, R, R], float32.

        `noise`: "fixed" uses the stored maps (so that effects can be measured), "random" draws new ones from
        torch's global generator, "none" adds nothing.
        """
        return self.finish(self.start(styles.shape[0]), styles, noise, noise_maps)

    def noise_shapes(self) -> list[int]:
        """Side length of each conv layer's noise map, in order."""
        return [place.resolution for place in self.layout if place.kind == "conv"]

    def _conv_number(self, layer: int) -> int:
        return sum(place.kind == "conv" for place in self.layout[:layer])


class Generator(nn.Module):
    """Affine layers (latent → styles) and synthesis (styles → image).

    The latent is `w ⊕ condition`, W = D + K numbers. All affine layers are one matrix [T, W], so that one
    product gives all styles; row r belongs to style coordinate r. Bias starts at 1.
    """

    def __init__(
        self, latent_features: int, condition_features: int, resolution: int, channels: dict[int, int]
    ) -> None:
        super().__init__()
        self.latent_features = latent_features
        self.condition_features = condition_features
        self.synthesis = Synthesis(resolution, channels)
        width = latent_features + condition_features
        self.affine_weight = nn.Parameter(torch.randn(self.synthesis.style_size, width))
        self.affine_bias = nn.Parameter(torch.ones(self.synthesis.style_size))
        self.affine_gain = 1.0 / math.sqrt(width)

    def styles(self, latents: Tensor) -> Tensor:
        """Latents [N, W], or [N, L, W] with one a layer (L = `synthesis.w_count`), → styles [N, T]."""
        weight = self.affine_weight * self.affine_gain
        if latents.dim() == 2:
            return F.linear(latents, weight, self.affine_bias)
        parts = [
            F.linear(latents[:, place.w_index], weight[place.slice], self.affine_bias[place.slice])
            for place in self.synthesis.layout
        ]
        return torch.cat(parts, dim=1)

    def forward(self, latents: Tensor, noise: Noise = "fixed") -> Tensor:
        images: Tensor = self.synthesis(self.styles(latents), noise)
        return images
