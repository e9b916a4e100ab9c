"""The classes that an exported folder's ``model.py`` files hand their work to."""

from m2ost_istar.serving import NetworkModel, SlideModel

__all__ = ["NetworkModel", "SlideModel"]
