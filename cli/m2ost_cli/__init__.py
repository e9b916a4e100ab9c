"""The ``m2ost`` command: the one place that knows every package."""
