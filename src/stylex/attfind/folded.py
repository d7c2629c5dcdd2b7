"""One image's synthesis for a sweep: styles folded into weights, one layer's changes in closed form.

Of the images that a sweep of one layer makes, all layers behind it have the same styles. So modulation,
demodulation and gains go into those layers' weights, once an image, and what is left is an ordinary
convolution with bias and leaky ReLU. In the changed layer itself a style s_c that becomes s_c + δ adds
δ · (W_c ∗ x_c), one input channel's contribution, to the convolution, and δ's part to the demodulation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from stylex import fused
from stylex.hardware import has_amx
from stylex.networks import StyleLayer, Synthesis, SynthesisState, winograd
from stylex.networks.generator import Noise, StyledConv, ToRGB
from stylex.networks.layers import FIR_TAPS, SQRT2, at_least_float32, energy, upsample2

PHASED_CHANNELS = 128
"""Below, a layer in bf16 is up-sampled faster by one convolution for the four phases of the new pixels.

Measured with AMX, one thread, 2026-11-28: 26 images with 64 channels take 9.9 in place of 15.9 ms from 32 to
64 px, and 4.3 in place of 5.5 from 16 px; 128 channels are alike, 256 lose. Without AMX, where four times the
multiplications cost four times as much, a polyphase convolution lost.
"""

SLOPE = 0.2
"""Of the leaky ReLU behind every convolution."""


@dataclass(frozen=True)
class _Convolution:
    """A modulated convolution of one image as a plain one: weight, and what is added before the rectifier.

    `weight` [O, C, 3, 3]; `bias` [O]; `noise` [1, 1, H, W] or None. Where the layer doubles the resolution
    either `weight` is [C, O, 3, 3] and the FIR filter `fir` [O, 1, 4, 4] follows, or `phases`: weight
    [2 · 2 · O, C, 3, 3] (row, column, channel) and bias [2 · 2 · O] make the four new pixels within each old
    one, with the filter in the weight. `kept` is what the weight is transformed to where that is done.
    """

    weight: Tensor
    bias: Tensor
    noise: Tensor | None
    fir: Tensor | None = None
    phases: bool = False
    kept: winograd.Kept = field(default_factory=dict)

    def __call__(self, features: Tensor) -> Tensor:
        weight, groups = self.weight, 1
        if self.fir is not None:
            features = fused.double(features, weight, self.kept)
            weight, groups = self.fir, len(self.fir)
        # Noise comes between the bias and the rectifier, which then follows by itself.
        slope = SLOPE if self.noise is None else None
        found = fused.convolve(
            features, weight, self.bias, slope=slope, padding=1, groups=groups, kept=self.kept
        )
        found = _woven(found) if self.phases else found
        return found if self.noise is None else F.leaky_relu_(found.add_(self.noise), SLOPE)


class FoldedSynthesis:
    """Synthesis of one style vector and of what single changes make of it.

    Args:
        synthesis: the generator's.
        style: [1, T].
        noise: "fixed" or "none"; random noise would not allow to compare images.
    """

    def __init__(self, synthesis: Synthesis, style: Tensor, noise: Noise) -> None:
        self._synthesis = synthesis
        self._style = style
        self._noise = noise
        self._layers = [
            self._folded(place, module)
            for place, module in zip(synthesis.layout, synthesis.layers, strict=True)
        ]
        self._states = list(synthesis.states(style, noise))

    def layer(self, number: int) -> ChangedLayer:
        """Layer number `number`, a convolution, ready for changes of its style."""
        module = self._synthesis.layers[number]
        assert isinstance(module, StyledConv)
        style = self._style[:, self._synthesis.layout[number].slice]
        return ChangedLayer(module, self._states[number], style, self._noise_of(module))

    def finish(self, state: SynthesisState) -> Tensor:
        """Images [N, 3, R, R], float32, from features [N, C, H, W] and an image so far, [1, 3, h, w] or None.

        The layers from the state's on run with the style of this object.
        """
        image = self.advance(state, len(self._layers)).image
        assert image is not None
        return image

    def advance(self, state: SynthesisState, until: int) -> SynthesisState:
        """The state before layer number `until`, from one of an earlier layer; its image has N rows or 1.

        The layers between run with the style of this object.
        """
        features, image = state.features, state.image
        for layer in self._layers[state.layer : until]:
            if isinstance(layer, _Convolution):
                features = layer(features)
                continue
            colours = at_least_float32(F.conv2d(features, layer[0], layer[1]))
            if image is not None:
                colours += upsample2(image) if image.shape[-1] < colours.shape[-1] else image
            image = colours
        return SynthesisState(until, features, image)

    def _folded(self, place: StyleLayer, module: torch.nn.Module) -> _Convolution | tuple[Tensor, Tensor]:
        style = self._style[:, place.slice]
        dtype = self._synthesis.compute_dtype
        if isinstance(module, ToRGB):
            weight = module.weight * (module.weight_gain * style)[:, :, None, None]
            return _placed(weight, dtype), module.bias.to(dtype)
        assert isinstance(module, StyledConv)
        gain = module.demodulation(style)[0] * SQRT2
        bias = (module.bias * SQRT2).to(dtype)
        noise = self._noise_of(module)
        if noise is not None:
            noise = (noise * (module.noise_strength * SQRT2)).to(dtype)
        if module.up and _in_phases(module.weight, dtype):
            taps = _phases_of(module) * style.T[:, :, None] * gain.repeat(4)  # [C, 9, 4 · O]
            kernels = taps.permute(2, 0, 1).reshape(-1, style.shape[1], 3, 3)
            return _Convolution(_placed(kernels, dtype), bias.repeat(4), noise, phases=True)
        weight = module.weight * style[:, :, None, None] * gain[:, None, None, None]
        if not module.up:
            return _Convolution(_placed(weight, dtype), bias, noise)
        fir = _placed(_fir(weight).expand(len(weight), 1, 4, 4), dtype)
        return _Convolution(_placed(weight.transpose(0, 1), dtype), bias, noise, fir)

    def _noise_of(self, module: StyledConv) -> Tensor | None:
        return module.fixed_noise if self._noise == "fixed" else None


class ChangedLayer:
    """One modulated convolution of one image, and what it gives when one of its styles changes.

    Args:
        module: the layer.
        state: the activations before it, of the unchanged image.
        style: [1, C], unchanged.
        noise: [1, 1, H, W] or None.
    """

    def __init__(
        self, module: StyledConv, state: SynthesisState, style: Tensor, noise: Tensor | None
    ) -> None:
        self._module, self._state, self._style = module, state, style[0]
        features = state.features
        dtype = features.dtype
        self._convolved = module.convolve(features * style.to(dtype)[:, :, None, None])
        shift = module.bias[None, :, None, None]
        if noise is not None:  # a map of every channel: laid out as the features, which follow it
            shift = (shift + noise * module.noise_strength).contiguous(memory_format=torch.channels_last)
        self._shift = (shift * SQRT2).to(dtype)
        self._exact = torch.device("cpu") if style.device.type == "mps" else style.device  # has float64
        self._energy = energy(module.weight.to(self._exact, torch.float64))  # [O, C]

    def __call__(self, channels: Tensor, values: Tensor) -> SynthesisState:
        """The state behind the layer for N changes: style `channels` [N] set to `values` [N], one in each.

        σ² of output channel o changes by (s'² − s²) · Σ W_oc², in float64: a style that dominates σ² and
        goes to zero must not leave rounding errors behind.
        """
        style, after = (numbers.to(self._exact, torch.float64) for numbers in (self._style, values))
        moved = channels.to(self._exact)
        before = style[moved]
        variance = F.linear(style.square()[None], self._energy)
        variance = variance + (after.square() - before.square())[:, None] * self._energy.T[moved]
        exact_scale = torch.rsqrt(variance.clamp(min=0) + self._module.epsilon) * SQRT2  # [N, O]
        amount = ((after - before)[:, None] * exact_scale).float().to(values.device)
        scale = exact_scale.to(self._convolved.dtype).to(values.device)
        features = torch.addcmul(self._shift, self._convolved, scale[:, :, None, None])
        self._add_contributions(features, channels, amount)
        return SynthesisState(self._state.layer + 1, F.leaky_relu_(features, SLOPE), self._state.image)

    def _add_contributions(self, features: Tensor, channels: Tensor, amount: Tensor) -> None:
        """Add `amount` [N, O] times the contribution of input channel `channels` [N] to features, in place.

        The contribution is a product of 3 × 3 neighbourhoods [pixels, 9] with the channel's weights. Where
        the layer doubles the resolution, transposed convolution and FIR filter together are a 6 × 6 kernel,
        and each of the four positions of a new pixel within an old one sees nine of its taps.
        """
        count, outputs = amount.shape
        moved, each = channels.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        maps = self._state.features[0, moved, None]
        height, width = maps.shape[2:]
        patches = F.unfold(maps, 3, padding=1)[each].transpose(1, 2)  # [N, pixels, 9]
        if not self._module.up:
            kernel = self._module.weight[:, channels].transpose(0, 1)  # [N, O, 3, 3]
            taps = (kernel * amount[:, :, None, None]).flatten(2).transpose(1, 2)  # [N, 9, O]
            flat = features.permute(0, 2, 3, 1).view(count, height * width, outputs)
            flat += torch.bmm(patches, taps.to(features.dtype))  # baddbmm has no fast way in bf16
            return
        taps = _phases_of(self._module)[channels] * amount.repeat(1, 4)[:, None]  # [N, 9, 2 · 2 · O]
        taps = taps.to(features.dtype)
        found = torch.bmm(patches, taps).view(count, height, width, 2, 2, outputs)
        pixels = features.permute(0, 2, 3, 1).view(count, height, 2, width, 2, outputs)
        pixels.add_(found.transpose(2, 3))


def _fir(like: Tensor) -> Tensor:
    """The resampling filter with gain 4, [4, 4]."""
    taps = torch.tensor(FIR_TAPS, dtype=like.dtype, device=like.device)
    return torch.outer(taps, taps) * (4.0 / sum(FIR_TAPS) ** 2)


def _phases(kernel: Tensor) -> Tensor:
    """What up-sampling with a kernel [N, O, 3, 3] does to the neighbourhood of a pixel: [N, 9, 4 · O].

    Inserting zeros, the kernel and the FIR filter with padding 1 make output 2q + a of an axis the sum over
    r in (−1, 0, 1) of input q + r times tap a + 2 − 2r of the 6 taps of kernel and filter together.
    """
    count, outputs = kernel.shape[:2]
    both = F.conv2d(kernel.reshape(-1, 1, 3, 3), _fir(kernel)[None, None], padding=3)  # [N · O, 1, 6, 6]
    taps = torch.tensor([[a + 2 - 2 * r for r in (-1, 0, 1)] for a in (0, 1)], device=kernel.device)
    found = both.view(count, outputs, 6, 6)[:, :, taps][..., taps]  # [N, O, a, r, b, q]
    return found.permute(0, 3, 5, 2, 4, 1).reshape(count, 9, 4 * outputs)


_PHASES: WeakKeyDictionary[StyledConv, tuple[Tensor, int, Tensor]] = WeakKeyDictionary()
"""Of a layer: the weight and the state of it that phases were made of, and these."""


def _phases_of(module: StyledConv) -> Tensor:
    """`_phases` of a layer's weight, [C, 9, 4 · O], kept for all images as long as the weight is the same."""
    weight = module.weight
    version = 0 if weight.is_inference() else weight._version
    known = _PHASES.get(module)
    if known is None or known[0] is not weight or known[1] != version or known[2].device != weight.device:
        known = weight, version, _phases(weight.detach().transpose(0, 1))
        _PHASES[module] = known
    return known[2]


def _in_phases(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether up-sampling is one convolution with four times the multiplications and no filter behind it."""
    narrow = weight.shape[1] < PHASED_CHANNELS
    return weight.device.type == "cpu" and dtype == torch.bfloat16 and narrow and has_amx()


def _woven(phases: Tensor) -> Tensor:
    """The four new pixels within each old one, put in their places: [N, 2 · 2 · O, h, w] → [N, O, 2h, 2w]."""
    count, features, height, width = phases.shape
    pixels = phases.permute(0, 2, 3, 1).reshape(count, height, width, 2, 2, features // 4).transpose(2, 3)
    return pixels.reshape(count, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)


def _placed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype).contiguous(memory_format=torch.channels_last)
