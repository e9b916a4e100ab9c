"""Measurements of a served release. Each is a command that prints ratios and writes JSON."""

import m2ost_preprocess  # noqa: F401 - before any library that would report to its maker
