"""What a person looks at: the HTML report, flickering animations, the figure of one counterfactual."""

from stylex.report.animation import counterfactual_figure, write_gif
from stylex.report.html import render_html

__all__ = ["counterfactual_figure", "render_html", "write_gif"]
