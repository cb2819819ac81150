"""What a preset's records show: a figure, its caption, and what it says in a few sentences.

One function per figure of the notebooks: it takes the records' tables and returns a `Finding`. Its
numbers are computed from the same tables, so that a sentence is about the preset at hand and
cannot differ from the figure above it. `show` saves a finding and displays it.
"""

from diffrl.findings.finding import Finding, recorded, show, show_kept

__all__ = ["Finding", "recorded", "show", "show_kept"]
