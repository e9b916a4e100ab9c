r"""Loads of spots on a served release.

::

    locust -f loadtests/m2ost_loadtests/load/locustfile.py --headless -H localhost:8001 \
        --slide root/a.svs -u 8 -t 1m
"""

from locust import events

from m2ost_loadtests.load import listeners
from m2ost_loadtests.load.users import IstarUser, PatchesUser, SlideUser

__all__ = ["IstarUser", "PatchesUser", "SlideUser"]

listeners.register(events)
