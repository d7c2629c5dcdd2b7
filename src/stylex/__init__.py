"""stylex explains image classifiers: ranked visual attributes and honest counterfactual images.

>>> import stylex
>>> explainer = stylex.load("demo")  # doctest: +SKIP
>>> explainer.attributes(target="young")  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stylex.errors import StylexError
from stylex.version import __version__

if TYPE_CHECKING:
    from stylex import attfind, study
    from stylex.attfind import Attribute
    from stylex.counterfactuals import Counterfactual
    from stylex.explainer import Explainer, load

__all__ = [
    "Attribute",
    "Counterfactual",
    "Explainer",
    "StylexError",
    "__version__",
    "attfind",
    "load",
    "study",
]

_PLACES = {
    "Attribute": "stylex.attfind",
    "Counterfactual": "stylex.counterfactuals",
    "Explainer": "stylex.explainer",
    "load": "stylex.explainer",
}


def __getattr__(name: str) -> Any:
    """Names that need PyTorch are imported when they are asked for: the program must hear Ctrl-C before."""
    if name in ("attfind", "study"):
        return import_module(f"stylex.{name}")
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'stylex' has no attribute '{name}'")
