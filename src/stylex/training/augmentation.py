"""Adaptive discriminator augmentation: what the discriminator sees of few images is varied, and how often.

Karras et al., "Training Generative Adversarial Networks with Limited Data" (2020), section 2 and appendix B:
the transformations "bgc" (blitting, geometry, colour), written from the paper.

The generator does not learn the augmentations as long as each leaves an image alone with some probability:
the map from the distribution of images to that of augmented images can then be inverted (section 2.2). Hence
`training.augmentation_max`, which keeps p under 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from stylex.training.randomness import Draws

ADJUST_EVERY = 4
"""Discriminator updates between two adjustments of p (section 3)."""

LOG2 = math.log(2.0)


@dataclass
class Transformation:
    """What happens to each of N images, in the order of the fields; tensors [N] unless it says otherwise.

    Angles in radians, counterclockwise as one sees the image; shifts [N, 2] (right, down) as a share of the
    width; colours in the images' range [-1, 1].
    """

    flip: Tensor
    quarters: Tensor
    whole_shift: Tensor
    scale: Tensor
    rotation_before: Tensor
    stretch: Tensor
    rotation_after: Tensor
    shift: Tensor
    brightness: Tensor
    contrast: Tensor
    luma_flip: Tensor
    hue: Tensor
    saturation: Tensor

    @classmethod
    def identity(cls, count: int) -> Transformation:
        """Of `count` images that stay as they are."""
        zero, one, pair = torch.zeros(count), torch.ones(count), torch.zeros(count, 2)
        return cls(zero, zero, pair, one, zero, one, zero, pair, zero, one, zero, zero, one)

    @classmethod
    def draw(cls, count: int, p: float, random: Draws, *, flips: bool = True) -> Transformation:
        """Each transformation with probability p and the paper's strengths (appendix B).

        Without `flips`, x-flips and rotations by 90° are left out: an image is then never mirrored. The
        numbers drawn are as many whatever p and flips are.
        """
        even, gates, normal = random.uniform(count, 8), random.uniform(count, 13), random.normal(count, 7)
        even, gates, normal = even.cpu(), gates.cpu(), normal.cpu()
        # Two rotations make one together: each with 1 − √(1 − p), so that one at least occurs with p.
        turn = 1.0 - math.sqrt(1.0 - p)
        odds = [p] * 13
        odds[4] = odds[6] = turn
        if not flips:
            odds[0] = odds[1] = 0.0
        on = gates < torch.tensor(odds)

        def gated(number: int, drawn: Tensor, still: float = 0.0) -> Tensor:
            gate = on[:, number] if drawn.dim() == 1 else on[:, number, None]
            return torch.where(gate, drawn, still)

        angle = (even * 2.0 - 1.0) * math.pi
        return cls(
            flip=gated(0, (even[:, 0] * 2).floor()),
            quarters=gated(1, (even[:, 1] * 4).floor()),
            whole_shift=gated(2, (even[:, 2:4] * 2.0 - 1.0) * 0.125),
            scale=gated(3, (normal[:, 0] * 0.2 * LOG2).exp(), 1.0),
            rotation_before=gated(4, angle[:, 4]),
            stretch=gated(5, (normal[:, 1] * 0.2 * LOG2).exp(), 1.0),
            rotation_after=gated(6, angle[:, 5]),
            shift=gated(7, normal[:, 2:4] * 0.125),
            brightness=gated(8, normal[:, 4] * 0.2),
            contrast=gated(9, (normal[:, 5] * 0.5 * LOG2).exp(), 1.0),
            luma_flip=gated(10, (even[:, 7] * 2).floor()),
            hue=gated(11, angle[:, 6]),
            saturation=gated(12, (normal[:, 6] * LOG2).exp(), 1.0),
        )

    @property
    def resamples(self) -> Tensor:
        """Which images need values between their pixels: bool [N]."""
        still = (self.scale == 1) & (self.stretch == 1) & (self.shift == 0).all(dim=1)
        return ~(still & (self.rotation_before == 0) & (self.rotation_after == 0))

    @property
    def moves(self) -> Tensor:
        """Which images' pixels go elsewhere: bool [N]."""
        return self.resamples | (self.flip != 0) | (self.quarters != 0) | (self.whole_shift != 0).any(dim=1)

    @property
    def recolours(self) -> Tensor:
        """Which images change in colour: bool [N]."""
        still = (self.brightness == 0) & (self.contrast == 1) & (self.luma_flip == 0)
        return ~(still & (self.hue == 0) & (self.saturation == 1))

    def sources(self, width: int) -> Tensor:
        """Affine maps [N, 2, 3] from a place in the result to the place in the image that is seen there.

        Places are (x, y) in [-1, 1], y down. The maps are inverse to the transformations, composed in
        reverse order.
        """
        quarter = self.quarters.long()
        cosine = torch.tensor([1.0, 0.0, -1.0, 0.0])[quarter]  # exact, where cos(π/2) is not
        sine = torch.tensor([0.0, 1.0, 0.0, -1.0])[quarter]
        whole = (self.whole_shift * width).round() / width
        ones = torch.ones_like(self.scale)
        result = _diagonal(1.0 - 2.0 * self.flip, ones)
        result = result @ _turn_back(cosine, sine)
        result = result @ _shift_back(whole)
        result = result @ _diagonal(1.0 / self.scale, 1.0 / self.scale)
        result = result @ _turn_back(self.rotation_before.cos(), self.rotation_before.sin())
        result = result @ _diagonal(1.0 / self.stretch, self.stretch)
        result = result @ _turn_back(self.rotation_after.cos(), self.rotation_after.sin())
        result = result @ _shift_back(self.shift)
        return result[:, :2]

    def colours(self) -> Tensor:
        """Affine maps of colours, [N, 3, 4]: the last column is added.

        Luma is the mean of the three channels: the axis v = (1, 1, 1)/√3.
        """
        count = len(self.scale)
        unit, luma = torch.eye(3), torch.full((3, 3), 1.0 / 3.0)
        cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3.0)

        def column(values: Tensor) -> Tensor:
            return values[:, None, None]

        linear = column(self.contrast) * unit
        linear = (unit - 2.0 * column(self.luma_flip) * luma) @ linear
        cosine, sine = column(self.hue.cos()), column(self.hue.sin())
        linear = (cosine * unit + sine * cross + (1.0 - cosine) * luma) @ linear
        linear = (luma + column(self.saturation) * (unit - luma)) @ linear
        added = linear @ self.brightness[:, None, None].expand(count, 3, 1)  # brightness comes first
        return torch.cat([linear, added], dim=2)


def apply(images: Tensor, change: Transformation) -> Tensor:
    """Images [N, 3, R, R] in [-1, 1], transformed; differentiable with respect to them.

    An image that nothing happens to comes back bit for bit. Flips, quarter turns and shifts by whole pixels
    take no values between pixels, everything else goes through `warp`. Values can leave [-1, 1].
    """
    result = images
    sources = change.sources(images.shape[-1])
    for chosen, function in (
        (change.moves & ~change.resamples, _move),
        (change.resamples, warp),
    ):
        result = _on_some(result, chosen, function, sources)
    return _on_some(result, change.recolours, recolour, change.colours())


def _on_some(images: Tensor, chosen: Tensor, function: _Function, maps: Tensor) -> Tensor:
    """The chosen images replaced by what the function makes of them, the others as they are."""
    if not bool(chosen.any()):
        return images
    where = chosen.nonzero()[:, 0]
    maps = maps[where].to(images.device)
    where = where.to(images.device)
    return images.index_copy(0, where, function(images[where].float(), maps).to(images.dtype))


class _Function(Protocol):
    def __call__(self, images: Tensor, maps: Tensor, /) -> Tensor: ...


def _move(images: Tensor, sources: Tensor) -> Tensor:
    width = images.shape[-1]
    return _sample(images, _places(sources, width, 0, width))


def warp(images: Tensor, sources: Tensor) -> Tensor:
    """Images [N, 3, R, R] seen through affine maps [N, 2, 3] of `Transformation.sources`.

    As in the paper: up-sampled twice, sampled bilinearly at twice the resolution, low-passed and decimated;
    beyond its edges an image goes on as its reflection. Deviation: the filter is a Lanczos-3 kernel of
    12 taps, where the paper takes the sym6 wavelet, also of 12.
    """
    width, margin = images.shape[-1], 5
    fine = _double(_double(images).transpose(2, 3)).transpose(2, 3)
    sampled = _sample(fine, _places(sources, 2 * width, -margin, 2 * width + margin))
    kernel = _kernel(images)
    planes = sampled.flatten(0, 1)[:, None]
    planes = F.conv2d(planes, kernel[None, None, :, None] / 2, stride=(2, 1))
    planes = F.conv2d(planes, kernel[None, None, None, :] / 2, stride=(1, 2))
    return planes.reshape(images.shape)


def recolour(images: Tensor, colours: Tensor) -> Tensor:
    """Images [N, 3, R, R] with each pixel's colour mapped by [N, 3, 4]."""
    changed = colours[:, :, :3] @ images.flatten(2) + colours[:, :, 3:]
    return changed.reshape(images.shape)


class Augmentation:
    """Transforms what the discriminator sees with a probability p that follows its overfitting.

    r = E[sign D(x)] over real images is 0 when the discriminator cannot tell and 1 when it knows every one by
    heart (section 3): every four updates p goes up where r is above the target, else down, by as much as
    takes it from 0 to 1 in `kimg` thousand images, within [0, maximum].

    `state` is [p, sum of signs, real images, updates] since the last adjustment: all that a checkpoint needs.
    """

    def __init__(self, *, target: float, kimg: float, maximum: float, flips: bool) -> None:
        self.target, self.kimg, self.maximum, self.flips = target, kimg, maximum, flips
        self.state = torch.zeros(4)

    @property
    def p(self) -> float:
        """The probability of each transformation now."""
        return float(self.state[0])

    def __call__(self, images: Tensor, random: Draws) -> Tensor:
        """Images [N, 3, R, R] in [-1, 1] as the discriminator is to see them."""
        return apply(images, Transformation.draw(len(images), self.p, random, flips=self.flips))

    @torch.no_grad()
    def note(self, real_scores: Tensor) -> None:
        """Take down the discriminator's scores [N] of augmented real images."""
        self.state[1] += real_scores.detach().float().sign().sum().cpu()
        self.state[2] += len(real_scores)

    @torch.no_grad()
    def after_update(self) -> dict[str, Tensor]:
        """To be called after each discriminator update; adjusts p after every fourth. Returns statistics."""
        self.state[3] += 1
        if int(self.state[3]) < ADJUST_EVERY:
            return {}
        p, signs, images, _ = self.state.tolist()
        r = signs / max(images, 1.0)
        step = images / (self.kimg * 1000)
        p += step if r > self.target else -step
        p = min(max(p, 0.0), self.maximum)
        self.state.copy_(torch.tensor([p, 0.0, 0.0, 0.0]))
        return {"augmentation/p": torch.tensor(p), "augmentation/r": torch.tensor(r)}


def _diagonal(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], dim=1))


def _turn_back(cosine: Tensor, sine: Tensor) -> Tensor:
    """The map that undoes a counterclockwise turn; y points down."""
    result = torch.zeros(len(cosine), 3, 3)
    result[:, 0, 0] = result[:, 1, 1] = cosine
    result[:, 0, 1], result[:, 1, 0] = -sine, sine
    result[:, 2, 2] = 1.0
    return result


def _shift_back(shift: Tensor) -> Tensor:
    """The map that undoes a shift [N, 2] given as a share of the width, which is 2 in these coordinates."""
    result = torch.eye(3).repeat(len(shift), 1, 1)
    result[:, :2, 2] = -2.0 * shift
    return result


def _places(sources: Tensor, size: int, first: int, last: int) -> Tensor:
    """Where pixels `first` to `last − 1` of a grid of `size` a side come from: [N, last − first, …, 2]."""
    line = (torch.arange(first, last, device=sources.device) * 2.0 + 1.0) / size - 1.0
    y, x = torch.meshgrid(line, line, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], dim=2)
    return torch.einsum("nij,hwj->nhwi", sources, places)


def _sample(images: Tensor, places: Tensor) -> Tensor:
    return F.grid_sample(images, places, mode="bilinear", padding_mode="reflection", align_corners=False)


def _kernel(like: Tensor) -> Tensor:
    """Lanczos-3 at the twelve places around the middle between two pixels of twice the resolution; sum 2."""
    x = (torch.arange(12, dtype=torch.float64) - 5.5) / 2.0
    taps = torch.sinc(x) * torch.sinc(x / 3.0)
    even, odd = taps[0::2], taps[1::2]  # each of the two phases of up-sampling keeps a constant
    taps = torch.stack([even / even.sum(), odd / odd.sum()], dim=1).flatten()
    return taps.to(like)


def _double(images: Tensor) -> Tensor:
    """Twice as many rows, the image reflected at its edges: [N, C, H, W] → [N, C, 2H, W]."""
    count, channels, height, width = images.shape
    rows = torch.arange(-3, height + 3, device=images.device)
    rows = torch.where(rows < 0, -1 - rows, rows)
    rows = torch.where(rows >= height, 2 * height - 1 - rows, rows)
    planes = images[:, :, rows].flatten(0, 1)[:, None]
    kernel = _kernel(images)
    phases = torch.stack([kernel[0::2], kernel[1::2]])  # at 1/4 px before a row, and 1/4 px after one
    found = F.conv2d(planes, phases[:, None, :, None])
    both = torch.stack([found[:, 0, :-1], found[:, 1, 1:]], dim=2)
    return both.reshape(count, channels, 2 * height, width)
