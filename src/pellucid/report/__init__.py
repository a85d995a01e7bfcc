"""A run as one offline HTML file: every number with its interval and promise, every curve, every decision.

Reading only: needs no torch, no network and no script in the page.
"""

from pellucid.report.page import render, write_report

__all__ = ["render", "write_report"]
