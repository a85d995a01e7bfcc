"""A run as one offline HTML file: every number with its interval and promise, every curve, every decision.

Reading only: needs no torch and no network. What moves in the page is drawn by its own script from data in it; without scripts and on paper still pictures
stand in its place.
"""

from pellucid.report.page import render, write_report

__all__ = ["render", "write_report"]
