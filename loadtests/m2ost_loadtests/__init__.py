"""Measurements of a served release. Each is a command that prints ratios and writes JSON."""

import m2ost_contract  # noqa: F401 - before any library that would report to its maker
