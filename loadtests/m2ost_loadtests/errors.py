"""Errors of the load tests.

::

    LoadTestError
    ├── TargetError       the server cannot be measured: away, a model not loaded, a slide unknown, no spots
    ├── ThresholdsError   the thresholds file is wrong, or asks for what was not measured
    ├── BaselineError     a baseline file is damaged
    ├── MemoryCapExceeded a system needs more memory than its cap
    └── SystemDied        the process of a system that was being timed died
"""

from __future__ import annotations

from m2ost_contract import M2OSTError


class LoadTestError(M2OSTError):
    """Base of every error that ``m2ost_loadtests`` raises on purpose."""


class TargetError(LoadTestError):
    """The server cannot be measured: it is away, a model is not loaded, a slide is unknown, or it has no spots."""


class ThresholdsError(LoadTestError):
    """The thresholds file is wrong, or asks for what was not measured."""


class BaselineError(LoadTestError):
    """A baseline file is damaged."""


class MemoryCapExceeded(LoadTestError):
    """A system needs more memory than its cap."""


class SystemDied(LoadTestError):
    """The process of a system that was being timed died."""
