"""The ground floor: slide readers, µm/px, tissue, spots, and the three nested views of a spot.

Everything that touches pixels lives here once: training, the server and the client call the same code, so what
the network learned on is what it is served.
"""

import os

NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1"}
"""Variables that keep libraries from reporting to their makers. ONNX Runtime reads its own while it is imported, looks
up a host of Microsoft's some seconds later, and keeps a device id below ~/.cache/Microsoft."""

# Here, as every package of ours imports this one first and every process that one of them starts inherits it.
for _name, _value in NO_TELEMETRY.items():
    os.environ.setdefault(_name, _value)
