"""What runs inside tritonserver: who is served when, tiling, engines, and what both say to Triton."""

import m2ost_contract  # noqa: F401 - before any library that would report to its maker
