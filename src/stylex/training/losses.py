"""The objective: every loss of the recipes, in one object that knows the phases.

The loop calls `accumulate_gradients` with a phase and a batch and steps the optimiser; it knows no loss.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylex.classifiers import Classifier
from stylex.classifiers.distillation import agreement, divergence
from stylex.conditions import told
from stylex.config import Recipe, StepKind
from stylex.networks import Networks, conditional_score
from stylex.networks.convolution import second_order
from stylex.parallel import ALONE, World, path_length_images
from stylex.perceptual import ClassifierDistance, feature_distance
from stylex.stylespace import searchable_positions
from stylex.training.augmentation import Augmentation
from stylex.training.randomness import Draws
from stylex.training.schedule import Phase
from stylex.training.sparsity import thin_out_condition

AREA_SCALE = 0.15
"""Root mean square of a pixel's change over its colours, from -1 to 1, that counts as half changed."""


def r1_weight(recipe: Recipe, resolution: int) -> float:
    """γ of the penalty R1: as the recipe has it, or for "auto" 0.0002 · resolution² / images a step.

    The heuristic of Karras et al., "Training Generative Adversarial Networks with Limited Data" (2020),
    appendix C.
    """
    if recipe.loss.r1 == "auto":
        return 0.0002 * resolution**2 / (recipe.training.batch_size * recipe.training.accumulate)
    return recipe.loss.r1


def make_augmentation(recipe: Recipe) -> Augmentation | None:
    """The augmentation that the recipe asks for, at p = 0."""
    settings = recipe.training
    if settings.augmentation == "none":
        return None
    flips = settings.mirror if settings.augmentation_flips is None else settings.augmentation_flips
    return Augmentation(
        target=settings.augmentation_target,
        kimg=settings.augmentation_kimg,
        maximum=settings.augmentation_max,
        flips=flips,
    )


@dataclass
class Batch:
    """Real images [N, 3, R, R] in [-1, 1] with what has been computed from them in this step so far.

    `judged`: whether the adversarial weight is above 0.
    """

    images: Tensor
    kind: StepKind
    random: Draws
    step: int = 0
    adversarial_share: float | Tensor = 1.0
    judged: bool = True
    fake: Tensor | None = None
    condition: Tensor | None = None
    real_logits: Tensor | None = None
    real_features: list[Tensor] | None = None
    told: Tensor | None = None
    statistics: dict[str, Tensor] = field(default_factory=dict)


class StylexLoss:
    """Losses of StylEx, its replications and plain StyleGAN2, as the recipe weighs them.

    Sources: adversarial, R1 and path length Karras et al. 2020; reconstruction, latent and classifier losses
    Lang et al. 2021, equations 1 to 4; "swap" steps are ours (docs/method.md).

    Losses are means over a process's images; averaged over the processes of `world`, their gradients are
    those of the whole batch.
    """

    def __init__(
        self,
        networks: Networks,
        classifier: Classifier,
        perceptual: nn.Module | None,
        recipe: Recipe,
        world: World = ALONE,
    ) -> None:
        self.world = world
        self.networks = networks
        self.classifier = classifier
        self.perceptual = perceptual
        self.recipe = recipe
        self.augmentation = make_augmentation(recipe)
        self.path_length_mean = torch.zeros((), device=next(networks.generator.parameters()).device)
        self._readers: Tensor | None = None

    @property
    def readers(self) -> Tensor:
        """Which of the generator's styles are searched, bool [T]."""
        if self._readers is None:
            generator = self.networks.generator
            found = torch.zeros(len(generator.affine_weight), dtype=torch.bool)
            found[searchable_positions(generator.synthesis.layout)] = True
            self._readers = found.to(generator.affine_weight.device)
        return self._readers

    def takes_part(self, phase: Phase, batch: Batch) -> bool:
        """Whether a batch has anything to say in a phase; the discriminator rests on some kinds of step."""
        return phase.name != "discriminator" or batch.kind in self.recipe.loss.adversarial_steps

    def accumulate_gradients(self, phase: Phase, batch: Batch, gain: float = 1.0) -> None:
        """Add the gradients of one phase, times `gain`, and write its statistics into the batch.

        `gain` is the batch's share of the step: 1 / n where the gradients of n batches make one update.
        """
        if phase.name == "generator":
            loss = self._generator(batch)
        elif phase.name == "path_length":
            loss = self._path_length(batch, gain)
        elif phase.name == "discriminator":
            loss = self._discriminator(batch)
        else:
            loss = self._r1(batch)
        (loss * (gain * phase.interval)).backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def after_update(self, phase: Phase, images: int, rate_share: float) -> dict[str, Tensor]:
        """What follows the optimiser's step: the recipe's proximal step, or adjusting the augmentation.

        Args:
            phase: the phase whose optimiser has stepped.
            images: training images seen before this step.
            rate_share: the learning rate as a share of the full one; the threshold falls with it.
        """
        if phase.name == "discriminator" and self.augmentation is not None:
            return self.augmentation.after_update()
        sparsity = self.recipe.sparsity
        generator = self.networks.generator
        begun_kimg = images / 1000 - sparsity.start_kimg
        if phase.name != "generator" or begun_kimg < 0:
            return {}
        scale = rate_share * (min(1.0, begun_kimg / sparsity.ramp_kimg) if sparsity.ramp_kimg > 0 else 1.0)
        found: dict[str, Tensor] = {}
        if sparsity.threshold > 0:
            share = thin_out_condition(
                generator.affine_weight,
                generator.condition_features,
                sparsity.threshold * scale,
                sums_to_one=self.recipe.network.condition == "probabilities"
                and self.classifier.activation == "softmax",
                exclusive=sparsity.exclusive,
                readers=self.readers if sparsity.exclusive > 0 else None,
            )
            found["class_free_styles"] = share
        if sparsity.latent_threshold > 0:
            columns = generator.affine_weight[:, : self.recipe.network.latent_features]
            columns.copy_(F.softshrink(columns, sparsity.latent_threshold * scale))
            found["unused_latents"] = (columns == 0).float().mean()
        return found

    def _logits(self, batch: Batch) -> Tensor:
        """The classifier's logits [N, K] of the real images, computed once a step."""
        if batch.real_logits is None:
            with torch.no_grad():
                if batch.kind == "encode" and isinstance(self.perceptual, ClassifierDistance):
                    found = self.classifier.forward_with_features(batch.images)
                    batch.real_logits, batch.real_features = found
                else:
                    batch.real_logits = self.classifier(batch.images)
        return batch.real_logits

    def condition(self, batch: Batch) -> Tensor | None:
        """What the generator is told of the real images' classes: [N, K], or None."""
        kind = self.recipe.network.condition
        if kind == "none":
            return None
        if batch.told is None:
            with torch.no_grad():
                images = batch.images
                batch.told = told(kind, self.classifier, self._logits(batch), images, self.networks.encoder)
        return batch.told

    @property
    def _evidence_told(self) -> bool:
        return self.recipe.network.condition == "evidence"

    def _swapped(self, condition: Tensor, order: Tensor, random: Draws) -> Tensor:
        """The conditions [N, K] of other images; of evidence every second row is put together from two.

        So the generator learns to change each component by itself, whatever the others say.
        """
        whole = self.world.gather(condition)
        first = whole[order]
        if not self._evidence_told:
            return first
        second = whole[random.permutation(len(condition))]
        taken = random.uniform(*condition.shape) < 0.5
        taken[self._every_second(len(taken))] = True
        return torch.where(taken, first, second)

    def _every_second(self, count: int) -> slice:
        """Every second image of the whole batch, those of them that this process has.

        On swap steps their evidence comes from one image, and where images are kept their w is not mixed.
        """
        world = self.world
        if world.size % 2 == 0:  # image j of process r is number j · R + r of the whole batch
            return slice(None) if world.rank % 2 == 0 else slice(0, 0)
        return slice(world.rank % 2, None, 2)

    def _share_of_every_second(self, count: int) -> float:
        """Weight of this process's mean over these images, so that processes' means make that over all."""
        own = len(range(*self._every_second(count).indices(count)))
        return own * self.world.size / -(-count * self.world.size // 2)

    def _augmented(self, images: Tensor, random: Draws) -> Tensor:
        """Images as the discriminator is to see them; nothing else ever sees them so."""
        return images if self.augmentation is None else self.augmentation(images, random)

    def _score(self, images: Tensor, condition: Tensor | None) -> Tensor:
        """Scores [N] of images that have been through `_augmented`."""
        weights = condition if self.recipe.network.discriminator != "plain" else None
        return conditional_score(self.networks.discriminator(images), weights)

    def _encoded(self, images: Tensor, kind: StepKind, random: Draws) -> tuple[Tensor, Tensor]:
        """w [N, D], and the part of it that the encoder's network found.

        On swap steps mixed in pairs, but for every second image's where images are kept.
        """
        encoder = self.networks.encoder
        assert encoder is not None
        w, learned = encoder.latents(images)
        if kind != "swap":
            return w, learned
        share = random.uniform(len(w), 1)
        if self._keeps_images:
            share[self._every_second(len(w))] = 1.0
        order = random.permutation(len(w))

        def mixed(own: Tensor) -> Tensor:
            return share * own + (1 - share) * self.world.gather(own)[order]

        whole = mixed(w)
        return whole, mixed(learned) if encoder.components else whole

    def _w(self, images: Tensor, kind: StepKind, random: Draws) -> Tensor:
        """w [N, D], or [N, L, D] with one a layer on z steps with style mixing."""
        if kind != "sample":
            return self._encoded(images, kind, random)[0]
        mapping = self.networks.mapping
        assert mapping is not None
        count = len(images)
        w: Tensor = mapping(random.normal(count, mapping.z_features))
        mapping.update_mean(self.world.gather(w.detach()))
        mixing = self.recipe.training.style_mixing
        if mixing == 0:
            return w
        layers = self.networks.generator.synthesis.w_count
        other = mapping(random.normal(count, mapping.z_features))
        mixed = random.uniform(count, 1) < mixing
        cut = 1 + (random.uniform(count, 1) * (layers - 1)).floor()
        late = torch.arange(layers, device=w.device)[None] >= torch.where(mixed, cut, layers)
        return torch.where(late[:, :, None], other[:, None], w[:, None])

    def _noise(self, count: int, random: Draws) -> list[Tensor] | None:
        """The recipe's noise maps of `count` images; None where they are not random."""
        if self.recipe.training.noise != "random":
            return None
        sizes = self.networks.generator.synthesis.noise_shapes()
        return [random.normal(count, 1, size, size) for size in sizes]

    def _synthesise(self, latents: Tensor, maps: list[Tensor] | None) -> Tensor:
        """Images of latents w ⊕ condition, with the recipe's noise."""
        generator = self.networks.generator
        images: Tensor = generator.synthesis(generator.styles(latents), self.recipe.training.noise, maps)
        return images

    def _generator(self, batch: Batch) -> Tensor:
        weights = self.recipe.loss
        condition = self.condition(batch)
        if batch.kind == "sample":
            w = learned = self._w(batch.images, batch.kind, batch.random)
        else:
            w, learned = self._encoded(batch.images, batch.kind, batch.random)
        order = None
        if batch.kind == "swap":
            order = batch.random.permutation(len(w))
            condition = None if condition is None else self._swapped(condition, order, batch.random)
        fake = self._synthesise(join(w, condition), self._noise(len(w), batch.random))
        batch.fake, batch.condition = fake.detach(), condition

        loss = torch.zeros((), device=fake.device)
        if batch.judged and batch.kind in weights.adversarial_steps:
            adversarial = F.softplus(-self._score(self._augmented(fake, batch.random), condition)).mean()
            batch.statistics["adversarial"] = adversarial.detach()
            loss = weights.adversarial * batch.adversarial_share * adversarial
        if batch.kind == "sample":
            return loss
        loss = loss + self._faithfulness(batch, fake, order)
        if weights.evidence > 0:
            assert condition is not None
            encoder = self.networks.encoder
            assert encoder is not None
            assert encoder.evidence is not None
            apart = encoder.evidence.apart(fake, condition).sum(dim=1).mean()
            apart = apart / encoder.evidence.used.clamp_min(1)
            batch.statistics[f"{batch.kind}/evidence"] = apart.detach()
            loss = loss + weights.evidence * apart
        if weights.latent_l1 > 0:
            assert self.networks.encoder is not None
            # Of what the network finds: components of an image of another class must be allowed to differ.
            latent = (self.networks.encoder.learned(fake) - learned).abs().mean()
            batch.statistics[f"{batch.kind}/latent_l1"] = latent.detach()
            loss = loss + weights.latent_l1 * latent
        if batch.kind == "swap" and self._keeps_images:
            loss = loss + self._kept(batch, fake)
        return loss

    @property
    def _keeps_images(self) -> bool:
        """Whether swap steps have images whose w is not mixed, and that count in `_kept`."""
        weights = self.recipe.loss
        return weights.proximity > 0 or weights.area > 0 or weights.cycle > 0

    def _kept(self, batch: Batch, fake: Tensor) -> Tensor:
        """What a swap should leave of every second image, and give back when it is taken back. Ours.

        Area counts the pixels that change, each by the robust function of Geman & McClure 1985: a change that
        is seen costs the same however large it is, so that a cause is changed fully and little beside it.
        Proximity costs more the more a pixel changes, and so pays for half a change. Taking back is the cycle
        consistency of Zhu et al. 2017, "Unpaired Image-to-Image Translation", with the encoder's w of the
        swapped image and the own condition in place of a second generator.
        """
        weights = self.recipe.loss
        rows = self._every_second(len(fake))
        weight = self._share_of_every_second(len(fake))
        images, swapped = batch.images[rows], fake[rows]
        maps = self._noise(len(fake), batch.random) if weights.cycle > 0 else None  # of all: all draw alike
        maps = None if maps is None else [noise[rows] for noise in maps]
        if weight == 0:
            for key in ("proximity", "area", "cycle"):
                if getattr(weights, key) > 0:
                    batch.statistics[f"swap/{key}"] = fake.new_zeros(())
            return fake.sum() * 0
        loss = torch.zeros((), device=fake.device)
        if weights.proximity > 0:
            proximity = (swapped - images).abs().mean()
            batch.statistics["swap/proximity"] = proximity.detach() * weight
            loss = loss + weights.proximity * weight * proximity
        if weights.area > 0:
            apart = (swapped - images).square().mean(dim=1)
            area = (apart / (apart + AREA_SCALE**2)).mean()
            batch.statistics["swap/area"] = area.detach() * weight
            loss = loss + weights.area * weight * area
        if weights.cycle > 0:
            encoder, own = self.networks.encoder, self.condition(batch)
            assert encoder is not None
            assert own is not None
            again = self._synthesise(join(encoder(swapped), own[rows]), maps)
            pixels, l1 = self._pixels(again - images)
            batch.statistics["swap/cycle"] = l1 * weight
            loss = loss + weights.cycle * weight * pixels
        return loss

    def _faithfulness(self, batch: Batch, fake: Tensor, order: Tensor | None) -> Tensor:
        """To the class that was asked for, and on "encode" steps to the image."""
        weights, note = self.recipe.loss, batch.statistics
        activation = self.classifier.activation
        target = self.classifier.probabilities(self._logits(batch))
        weight = 1.0
        if order is not None:
            target = self.world.gather(target)[order]
            if self._evidence_told:
                # What a classifier must say of parts of the evidence of two images is not known.
                known, weight = self._every_second(len(fake)), self._share_of_every_second(len(fake))
                if weight == 0:  # the other processes have them; all note the same statistics
                    nothing = fake.sum() * 0
                    note[f"{batch.kind}/kl"] = note[f"{batch.kind}/agreement"] = nothing.detach()
                    return nothing
                target, fake = target[known], fake[known]
        # With the classifier's own features as perceptual distance, one pass gives logits and features.
        features = None
        if batch.real_features is not None:
            fake_logits, features = self.classifier.forward_with_features(fake)
        else:
            fake_logits = self.classifier(fake)
        kl = divergence(fake_logits, target, activation)
        note[f"{batch.kind}/kl"] = kl.detach() * weight
        note[f"{batch.kind}/agreement"] = agreement(fake_logits, target, activation) * weight
        loss = weights.kl * weight * kl
        if batch.kind == "encode":
            pixels, note["l1"] = self._pixels(fake - batch.images)
            loss = loss + pixels
            if self.perceptual is not None:
                if features is not None and batch.real_features is not None:
                    perceptual = feature_distance(features, batch.real_features).mean()
                else:
                    perceptual = self.perceptual(fake, batch.images).mean()
                note["perceptual"] = perceptual.detach()
                loss = loss + weights.perceptual * perceptual
        return loss

    def _pixels(self, difference: Tensor) -> tuple[Tensor, Tensor]:
        """Mean absolute and squared difference as the recipe weighs them, and the first by itself."""
        weights = self.recipe.loss
        l1 = difference.abs().mean()
        loss = weights.l1 * l1
        if weights.l2 > 0:
            loss = loss + weights.l2 * difference.square().mean()
        return loss, l1.detach()

    def path_length_kind(self, batch: Batch) -> StepKind:
        """The kind of latents that path length is taken on."""
        settings, schedule = self.recipe.loss, self.recipe.training.schedule
        if not settings.path_length_in_turn:
            return batch.kind
        return schedule[batch.step // settings.path_length_interval % len(schedule)]

    def _path_length(self, batch: Batch, share: float) -> Tensor:
        """(‖Jᵀy‖ − a)², a a running mean (Karras et al. 2020, equation 4), on a part of the batch.

        J is taken with respect to the whole latent w ⊕ condition, as in the study's code.
        """
        settings = self.recipe.loss
        kind = self.path_length_kind(batch)
        whole = len(batch.images) * self.world.size
        count = path_length_images(whole, settings.path_length_batch_shrink) // self.world.size
        condition = self.condition(batch)
        if condition is not None:
            condition = condition[:count]
        w = self._w(batch.images[:count], kind, batch.random)
        if kind == "swap" and condition is not None:
            order = batch.random.permutation(len(w))
            condition = self._swapped(condition, order, batch.random)
        if kind != "sample" and not settings.path_length_trains_encoder:
            w = w.detach()
        if w.dim() == 2:
            w = w[:, None].expand(-1, self.networks.generator.synthesis.w_count, -1)
        latents = join(w, condition)
        if not latents.requires_grad:
            latents.requires_grad_(True)
        with second_order():
            fake = self._synthesise(latents, self._noise(len(latents), batch.random))
        direction = batch.random.normal(*fake.shape) / fake.shape[-1]
        (gradient,) = torch.autograd.grad((fake * direction).sum(), latents, create_graph=True)
        lengths = gradient.square().sum(dim=2).mean(dim=1).sqrt()
        found = self.world.mean(lengths.detach().mean())
        mean = self.path_length_mean.lerp(found, 0.01 * share)
        if settings.adversarial_start_kimg > 0:
            # The mean starts at the first lengths, not at 0 as published: pulled to 0, a generator that has
            # learned to follow its latents in the warm-up would unlearn it.
            mean = torch.where(self.path_length_mean == 0, found, mean)
        self.path_length_mean.copy_(mean)
        batch.statistics["path_length"] = found
        return settings.path_length * (lengths - mean).square().mean()

    def _discriminator(self, batch: Batch) -> Tensor:
        assert batch.fake is not None
        fake_score = self._score(self._augmented(batch.fake, batch.random), batch.condition)
        real_score = self._score(self._augmented(batch.images, batch.random), self.condition(batch))
        if self.augmentation is not None:
            self.augmentation.note(self.world.gather(real_score.detach()))
        note = batch.statistics
        note["score/fake"], note["score/real"] = fake_score.detach().mean(), real_score.detach().mean()
        loss = F.softplus(fake_score).mean() + F.softplus(-real_score).mean()
        note["discriminator"] = loss.detach()
        return loss

    def _r1(self, batch: Batch) -> Tensor:
        """γ/2 · ‖∇ₓD(x)‖² on real images (Mescheder et al. 2018).

        With augmentation x is the augmented image: what the discriminator sees is what it is penalised on.
        """
        images = self._augmented(batch.images, batch.random).detach().requires_grad_(True)
        with second_order():
            score = self._score(images, self.condition(batch))
        (gradient,) = torch.autograd.grad(score.sum(), images, create_graph=True)
        penalty = gradient.square().sum(dim=(1, 2, 3)).mean()
        batch.statistics["r1"] = penalty.detach()
        return r1_weight(self.recipe, images.shape[-1]) / 2 * penalty


def join(w: Tensor, condition: Tensor | None) -> Tensor:
    """w ⊕ condition: [N, D] or [N, L, D] and [N, K] → [N, D + K] or [N, L, D + K]."""
    if condition is None:
        return w
    wide = condition if w.dim() == 2 else condition[:, None].expand(-1, w.shape[1], -1)
    return torch.cat([w, wide], dim=-1)
