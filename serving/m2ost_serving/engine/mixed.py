"""Body and tail of a network on OpenVINO's CPU plugin."""

TOKENS, MEANS = "TOKENS", "MEANS"
"""What the body hands to the tail."""
