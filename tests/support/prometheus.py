"""A real Prometheus that scrapes a server."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from m2ost_preprocess.network import read_url

from tests.support.machine import kept_ports, wait_for


class Prometheus:
    """One that scrapes a server every second, as the job ``m2ost``."""

    def __init__(self, url: str) -> None:
        self._url = url

    def series(self, query: str) -> list[dict[str, Any]]:
        """All series of a query now, each with its labels and its value. OSError where the query is none."""
        answer = json.loads(read_url(f"{self._url}/api/v1/query?query={quote(query)}", 10))
        return answer["data"]["result"]

    def ask(self, query: str, window_s: float = 1.0) -> float:
        """The one value of a query now; NaN where it has none."""
        found = self.series(query.replace("WINDOW", f"{window_s:.0f}s"))
        return float(found[0]["value"][1]) if found else float("nan")


@contextmanager
def prometheus(metrics_url: str, folder: Path, **settings: Any) -> Iterator[Prometheus]:
    """Prometheus, with a scrape of that page every second, and further settings of its file."""
    target = metrics_url.removeprefix("http://").removesuffix("/metrics")
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [{"job_name": "m2ost", "static_configs": [{"targets": [target]}]}],
        **settings,
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    with kept_ports(1) as (port,):
        command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"], stdout=subprocess.DEVNULL
        )
        try:
            found = Prometheus(f"http://127.0.0.1:{port}")

            def scraped() -> bool:
                try:
                    return found.ask("up") == 1
                except OSError:
                    return False

            wait_for(scraped, "a scrape of the server")
            yield found
        finally:
            process.terminate()
            process.wait(30)
