"""stylex explains image classifiers: ranked visual attributes and honest counterfactual images.

>>> import stylex
>>> explainer = stylex.load("demo")  # doctest: +SKIP
>>> explainer.attributes(target="young")  # doctest: +SKIP
"""

from stylex import attfind
from stylex.attfind import Attribute
from stylex.counterfactuals import Counterfactual
from stylex.errors import StylexError
from stylex.explainer import Explainer, load
from stylex.version import __version__

__all__ = ["Attribute", "Counterfactual", "Explainer", "StylexError", "__version__", "attfind", "load"]
