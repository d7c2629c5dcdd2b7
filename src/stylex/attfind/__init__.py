"""AttFind (Lang et al. 2021, section 3.3): measure the effect of every coordinate, select attributes."""

from stylex.attfind.attributes import Attribute, Findings, find_attributes
from stylex.attfind.class_effects import effects_of
from stylex.attfind.discovery import Discovery, Latents, SearchSource, discover, sample_latents
from stylex.attfind.search import load_discovery, load_findings, load_logits, search
from stylex.attfind.selection import (
    merge_two_classes,
    select_independent,
    select_removal,
    select_subset,
    unstable_images,
)
from stylex.attfind.sweep import BATCH_SIZE, sweep, sweep_in_batches, sweep_slowly

__all__ = [
    "BATCH_SIZE",
    "Attribute",
    "Discovery",
    "Findings",
    "Latents",
    "SearchSource",
    "discover",
    "effects_of",
    "find_attributes",
    "load_discovery",
    "load_findings",
    "load_logits",
    "merge_two_classes",
    "sample_latents",
    "search",
    "select_independent",
    "select_removal",
    "select_subset",
    "sweep",
    "sweep_in_batches",
    "sweep_slowly",
    "unstable_images",
]
