"""StyleGAN2's networks as plain modules: no training, no input or output.

Source of the architecture: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN",
arXiv 1912.04958 ('skip' generator, residual discriminator), with the encoder and the condition of
Lang et al., "Explaining in Style", arXiv 2104.13369.
"""

from stylex.networks.build import Networks, build
from stylex.networks.evidence import Evidence
from stylex.networks.generator import Generator, StyleLayer, Synthesis, SynthesisState
from stylex.networks.layers import EqualConv2d, EqualLinear, blur, downsample2, upsample2
from stylex.networks.mapping import Mapping
from stylex.networks.projected import ProjectedDiscriminator
from stylex.networks.residual import Discriminator, Encoder, conditional_score

__all__ = [
    "Discriminator",
    "Encoder",
    "EqualConv2d",
    "EqualLinear",
    "Evidence",
    "Generator",
    "Mapping",
    "Networks",
    "ProjectedDiscriminator",
    "StyleLayer",
    "Synthesis",
    "SynthesisState",
    "blur",
    "build",
    "conditional_score",
    "downsample2",
    "upsample2",
]
