"""The user study: can people see what an attribute changes? Questions, answers' store, pages, analysis."""

from stylex.study.analysis import Analysis, analyse

__all__ = ["Analysis", "analyse"]
