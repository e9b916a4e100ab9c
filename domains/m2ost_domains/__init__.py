"""Spatial domains of a section: groups of spots of like expression, measured or predicted, and how well they agree."""

import m2ost_contract  # noqa: F401 - before any library that would report to its maker
