"""All measurements, ``m2ost bench …``."""

from . import bench_archives, bench_machine, bench_maps, bench_speed, bench_truth  # noqa: F401
from .bench_group import HEADINGS, bench

__all__ = ["bench"]

bench.registered_commands.sort(key=lambda command: HEADINGS.index(str(command.rich_help_panel)))
