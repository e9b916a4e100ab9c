"""Loads on a served release, and the gate against getting slower."""

import m2ost_contract  # noqa: F401 - before any library that would report to its maker
