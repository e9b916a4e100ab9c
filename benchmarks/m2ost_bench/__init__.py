"""Measurements: each gives ratios of one run, and a record of what they depend on. ``m2ost bench`` runs them."""

import m2ost_contract  # noqa: F401 - before any library that would report to its maker
