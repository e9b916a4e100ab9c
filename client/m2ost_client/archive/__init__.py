"""Re-scoring an archive of slides: nothing lost, nothing done twice.

A folder holds ``state.sqlite`` (what is known of every slide, and the parts of those that are not finished),
``results/`` (a result a slide, as ``m2ost predict`` writes it), and at the end of a run ``archive.parquet`` and
``summary.json``. Whatever ends a run, the same call goes on from there, and the results are the same bytes.

A scheduler of one's own needs three steps for a slide, each a function that any process may run:
:func:`~m2ost_client.archive.plan.plan_slide`, :func:`~m2ost_client.archive.score.score_range` for every range of its
spots, and :func:`~m2ost_client.archive.output.write_slide`; :class:`~m2ost_client.archive.state.State` keeps what they
return.
"""

from .access import Access, OnServer, Sent, Shared, roots_of
from .endpoint import EndpointOptions
from .options import ArchiveReport, Progress, RescoreOptions, Servers
from .patience import Patience
from .plan import Settings
from .pool import Pool
from .ray_runner import Cluster, OnRay, SentByWorkers, connected
from .rescoring import rescore
from .run import Rescore
from .runner import Runner
from .scan import LeftOut
from .shards import Shard, folder_of_run, join_shards, unfinished
from .slide_list import SlideList, SlideRow, read_slides
from .state import State, exclusive
from .status import ArchiveStatus, read_status
from .storage import is_url

__all__ = [
    "Access",
    "ArchiveReport",
    "ArchiveStatus",
    "Cluster",
    "EndpointOptions",
    "LeftOut",
    "OnRay",
    "OnServer",
    "Patience",
    "Pool",
    "Progress",
    "Rescore",
    "RescoreOptions",
    "Runner",
    "Sent",
    "SentByWorkers",
    "Servers",
    "Settings",
    "Shard",
    "Shared",
    "SlideList",
    "SlideRow",
    "State",
    "connected",
    "exclusive",
    "folder_of_run",
    "is_url",
    "join_shards",
    "read_slides",
    "read_status",
    "rescore",
    "roots_of",
    "unfinished",
]
