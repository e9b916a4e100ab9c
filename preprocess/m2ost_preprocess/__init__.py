"""Slides to views: readers, µm/px, tissue, spots, and the three nested views of a spot.

Everything that touches pixels lives here once: training, the server and the client call the same code, so what
the network learned on is what it is served.
"""

import m2ost_contract  # noqa: F401 - before any library that would report to its maker
