"""The M2OST network, its checkpoints, and the conversion of the authors' weights."""

import m2ost_contract  # noqa: F401 - before any library that would report to its maker
