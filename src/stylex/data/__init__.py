"""Where images come from: folders, tables, Fashion-MNIST, rendered avatars; always in three sets."""

from stylex.data.avatar_spec import AvatarSpec
from stylex.data.avatars import RenderedAvatars, render_avatars
from stylex.data.decode import decode_image
from stylex.data.faces import FACTORS, STANDARD_VALUES, render_face
from stylex.data.images import Dataset, ImageSet, check_size
from stylex.data.preview import Preview, preview
from stylex.data.sources import load_dataset
from stylex.data.splits import split_of

__all__ = [
    "FACTORS",
    "STANDARD_VALUES",
    "AvatarSpec",
    "Dataset",
    "ImageSet",
    "Preview",
    "RenderedAvatars",
    "check_size",
    "decode_image",
    "load_dataset",
    "preview",
    "render_avatars",
    "render_face",
    "split_of",
]
