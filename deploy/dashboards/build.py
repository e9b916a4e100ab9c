"""Write Grafana's dashboard of m2ost servers: ``python build.py FILE``.

Runs where grafana-foundation-sdk is; ``make dashboards`` sees to that. ``docs/metrics.md`` says what each metric means.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
COLUMNS, HEIGHT = 3, 8
"""Panels beside each other, and the height of each in units of Grafana's grid, which is 24 wide."""


@dataclass(frozen=True)
class Panel:
    """Lines over time.

    Attributes
    ----------
    title, description : str
    unit : str
        As Grafana names it.
    lines : tuple of (str, str)
        A query in PromQL, and the legend of each of its series.
    highest : float, optional
        Upper end of the axis, where the values have one.
    """

    title: str
    description: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    highest: float | None = None


def rate(metric: str, by: str) -> str:
    """A counter's increase a second, summed over all labels but one."""
    return f"sum by ({by}) (rate({metric}[$__rate_interval]))"


def ratio(counter: str, of: str) -> str:
    """How fast one counter of a server rises beside another."""
    return f"{rate(counter, 'instance')} / {rate(of, 'instance')}"


PANELS = (
    Panel(
        "Servers",
        "1 where the server gives its metrics.",
        "none",
        (('up{job="m2ost"}', "{{instance}}"),),
        highest=1,
    ),
    Panel(
        "Spots a second",
        "Spots of slides that have a value and have left the server.",
        "suffix: spots/s",
        ((rate("m2ost_guarded_rows_total", "instance"), "{{instance}}"),),
    ),
    Panel(
        "Saturation of the engine",
        "Time that runs of the engine take, of the time that there is. Engines that Triton runs itself do not tell it.",
        "percentunit",
        (
            (
                rate("m2ost_engine_busy_seconds_total", "instance")
                + " / sum by (instance) (m2ost_engine_runs_at_once)",
                "{{instance}}",
            ),
        ),
        highest=1,
    ),
    Panel(
        "Requests that wait",
        "Requests for which the tiler, or slide_info, has no time yet.",
        "suffix: requests",
        (
            ("sum by (instance) (m2ost_tiler_waiting_requests)", "tiler {{instance}}"),
            ("sum by (instance) (m2ost_info_waiting_requests)", "slide_info {{instance}}"),
        ),
    ),
    Panel(
        "Rows that wait for the engine",
        "Spots that have views and no value yet. Engines that Triton runs itself do not tell it.",
        "suffix: rows",
        (("sum by (instance) (m2ost_engine_waiting_rows)", "{{instance}}"),),
    ),
    Panel(
        "Rows a run of the engine",
        "How full its batches are.",
        "suffix: rows",
        ((ratio("m2ost_engine_rows_total", "m2ost_engine_session_runs_total"), "{{instance}}"),),
    ),
    Panel(
        "Refused requests by reason",
        "Requests that a model answered by an error.",
        "reqps",
        ((rate("m2ost_requests_refused_total", "reason"), "{{reason}}"),),
    ),
    Panel(
        "Rows by status",
        "Spots that the tiler answered.",
        "rowsps",
        ((rate("m2ost_rows_total", "status"), "{{status}}"),),
    ),
    Panel(
        "Failed slides by reason",
        "Slides that could not be read, once for each request that named one.",
        "suffix: slides/s",
        ((rate("m2ost_slides_failed_total", "reason"), "{{reason}}"),),
    ),
    Panel(
        "Mean time of a request",
        "Of requests by slide name that succeed, from their arrival to their answer.",
        "s",
        (
            (
                ratio(
                    'nv_inference_request_duration_us{model=~".*_slide"}',
                    'nv_inference_request_success{model=~".*_slide"}',
                )
                + " / 1e6",
                "{{instance}}",
            ),
        ),
    ),
    Panel(
        "Pixels decoded for each that is needed",
        "Below 1 where spots share them; high where tiles are decoded again, or are large beside the spots.",
        "none",
        ((ratio("m2ost_tiler_decoded_px_total", "m2ost_tiler_needed_px_total"), "{{instance}}"),),
    ),
    Panel(
        "Cache",
        "Decoded tiles and views that are kept for later spots.",
        "bytes",
        (("sum by (instance) (m2ost_tiler_cache_bytes)", "{{instance}}"),),
    ),
    Panel(
        "Restarts within an hour",
        "How often the supervisor replaced tritonserver.",
        "suffix: restarts",
        (("sum by (instance) (increase(m2ost_server_restarts_total[1h]))", "{{instance}}"),),
    ),
)


def drawn(panel: Panel) -> timeseries.Panel:
    """A panel as Grafana takes it."""
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    made = timeseries.Panel().title(panel.title).description(panel.description).unit(panel.unit)
    made = made.datasource(SOURCE).legend(legend.show_legend(True)).min(0).span(24 // COLUMNS).height(HEIGHT)
    for name, (expression, words) in zip("AB", panel.lines, strict=False):
        made = made.with_target(prometheus.Dataquery().ref_id(name).expr(expression).legend_format(words).range())
    return made if panel.highest is None else made.max(panel.highest)


def main() -> None:
    made = dashboard.Dashboard("M2OST").uid("m2ost").tags(["m2ost"]).refresh("30s").time("now-3h", "now")
    made = made.with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    for panel in PANELS:
        made = made.with_panel(drawn(panel))
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n")


if __name__ == "__main__":
    main()
