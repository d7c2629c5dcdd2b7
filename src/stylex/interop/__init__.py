"""Checkpoints of other projects: their StyleGAN2 networks as ours, without running any of their code."""

from stylex.interop.files import StyleGAN2, load_stylegan2, read_checkpoint
from stylex.interop.pickles import ForeignNetwork

__all__ = ["ForeignNetwork", "StyleGAN2", "load_stylegan2", "read_checkpoint"]
