"""A run as one offline HTML file: every number with its interval and promise, every curve, every decision.

Reading only: needs no torch and no network. The page has no script but that of the slider over epochs of a segmentation's masks,
without which all epochs are shown.
"""

from pellucid.report.page import render, write_report

__all__ = ["render", "write_report"]
