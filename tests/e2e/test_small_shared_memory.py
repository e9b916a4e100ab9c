"""A server in a container with Docker's 64 MiB of /dev/shm: what fits is served, and what cannot fit is refused."""

from tests.support.machine import in_namespaces

SCRIPT = """
import asyncio, sys, time
from contextlib import aclosing
from pathlib import Path
import numpy as np
from m2ost_client import RequestRejected, ServerOptions, SpotStream, StreamOptions, TritonServer
from m2ost_client.server.host import SHM
from m2ost_preprocess.slides import SlideRoots

release, slide = map(Path, sys.argv[1:])
centers = np.random.default_rng(0).integers(300, 1800, (256, 2))

async def ask(address, rows, pixels=False):
    # Twice as long as any of it takes, and less than any deadline.
    options = StreamOptions(batch_rows=rows, deadline_s=60, retry_for_s=20)
    async with SpotStream(address, options) as stream, asyncio.timeout(30):
        try:
            if pixels:
                await stream.score_views([np.zeros((rows, 224, 224, 3), np.uint8)] * 3)
                return "scored"
            async with aclosing(stream.predict(f"wsi/{slide.name}", centers[:rows])) as batches:
                return "scored" if [not batch.status.any() async for batch in batches] == [True] else "not scored"
        except RequestRejected as error:
            return f"{error.status}: {error}"

with TritonServer(ServerOptions(release=release, roots=SlideRoots({"wsi": slide.parent}))) as server:
    for rows, pixels in ((256, False), (256, True), (32, False), (32, True), (256, False)):
        print(asyncio.run(ask(server.address, rows, pixels)))
    with (SHM / "filler").open("wb", buffering=0) as filler:
        try:
            while filler.write(bytes(1 << 12)):
                pass
        except OSError:
            print(asyncio.run(ask(server.address, 32)))
            print(asyncio.run(ask(server.address, 256, True)))
            print(asyncio.run(ask(server.address, 60)))
    print(server.restarts)
    began = time.monotonic()
print(f"stopped in {time.monotonic() - began:.1f} s")
"""


def test_requests_that_cannot_fit_are_refused_with_the_number_that_helps(narrow_release, svs):
    *said, full, pixels, larger, restarts, stopped = in_namespaces(SCRIPT, narrow_release, svs)
    tiler = r"INVALID_ARGUMENT: in ensemble 'm2ost_slide', the views of 256 spots take 110 MiB of /dev/shm, where "
    assert said[0].startswith(tiler)
    assert "send at most " in said[0]
    assert said[0].endswith("for a container --shm-size 384m")
    assert said[1].startswith("INTERNAL: the views of 256 spots, 110 MiB, find no room in the server's /dev/shm: ")
    assert "--shm-size 384m" in said[1]
    assert said[2:4] == ["scored", "scored"]
    assert said[4].startswith(tiler)
    assert full == "scored", "its regions have grown for as much before"
    assert pixels.startswith("INTERNAL: the views of 256 spots")
    assert larger.startswith("INVALID_ARGUMENT: in ensemble 'm2ost_slide', the views of 60 spots take 26 MiB")
    assert restarts == "0"
    assert float(stopped.split()[2]) < 5, "Triton waits ten seconds for a request without an answer"
