"""Shares of a list of slides: disjoint, together the list; and what joins what was made of them."""

import json
import random

import pandas as pd
import pytest
from m2ost_client import InputError
from m2ost_client.archive import Shard, SlideList, SlideRow, folder_of_run, join_shards, unfinished
from m2ost_client.archive.output import summarise, write_summary, write_table
from m2ost_client.archive.scan import LeftOut
from m2ost_client.archive.state import DONE, FAILED, FILENAME, SlideRecord

FACTS = {"spots": 3, "spots_without_value": 0, "mpp": 0.5, "mpp_source": "given", "fingerprint": "f"}
RUN = {"ended": "done", "spots": 3, "seconds": 1.0, "release_sha256": "r", "engine": "e", "pitch_um": 100.0}
RUN["view_mpp"] = None


def slides(*names):
    return SlideList(tuple(SlideRow(name, f"{name}.svs") for name in names), left_out=(LeftOut("x", "why", False),))


@pytest.mark.parametrize("of", [1, 2, 3, 7, 40])
def test_shares_are_disjoint_and_complete_whatever_the_lists_order(of):
    names = [f"s{i}" for i in range(23)]
    shuffled = random.Random(of).sample(names, len(names))
    shares = [Shard(index, of).of_list(slides(*names)) for index in range(of)]
    again = [Shard(index, of).of_list(slides(*shuffled)) for index in range(of)]
    assert [share.rows for share in shares] == [share.rows for share in again]
    assert sorted(row.slide_id for share in shares for row in share.rows) == sorted(names)
    sizes = [len(share.rows) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert [len(share.left_out) for share in shares] == [1] + [0] * (of - 1)
    assert {(share.shard["list_sha256"], share.shard["of_slides"]) for share in shares} == {
        (again[0].shard["list_sha256"], 23)
    }


@pytest.mark.parametrize("text", ["4/4", "0/0", "-1/4", "1", "1/4/2", "a/4", ""])
def test_a_share_that_is_none_is_refused(text):
    with pytest.raises(InputError, match=f"--shard {text}"):
        Shard.parse(text)
    assert Shard.parse("3/4") == Shard(3, 4)


def end(shard, out, names, *, failed=(), run=RUN, left=0):
    """What a run over a share leaves, but for the results."""
    share = shard.of_list(slides(*names))
    folder = folder_of_run(shard, out)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for row in share.rows:
        facts = {**FACTS, "result": f"results/{row.slide_id}.h5ad"}
        good = row.slide_id not in failed
        outcome = (DONE, None, "key", 3, facts) if good else (FAILED, "bad", None, None, None)
        records.append(SlideRecord(row.slide_id, row.path, *outcome, 1))
    write_table(records, folder)
    write_summary(
        summarise(records, skipped=0, run={**run}, left_out=share.left_out, shard=share.shard),
        folder,
    )


NAMES = ["d", "a", "c", "b", "e"]


def test_the_shards_are_one_archive_whoever_joins_them(tmp_path):
    for index in (1, 0):
        with pytest.raises(InputError, match="shards"):
            join_shards(tmp_path)
        end(Shard(index, 2), tmp_path, NAMES, failed=("b",))
    assert unfinished(tmp_path) == []
    report = join_shards(tmp_path)
    table = pd.read_parquet(tmp_path / "archive.parquet")
    assert table.slide_id.tolist() == sorted(NAMES)
    assert table.result.tolist()[::2] == [f"shard-0-of-2/results/{name}.h5ad" for name in "ace"]
    assert table.result.fillna("").tolist()[1::2] == ["", "shard-1-of-2/results/d.h5ad"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == report.summary
    assert {name: summary[name] for name in ("slides", "done", "left", "spots")} == {
        "slides": 5, "done": 4, "left": 0, "spots": 12,
    }  # fmt: skip
    assert [failed["slide_id"] for failed in summary["failed"]] == ["b"]
    assert not report.complete
    assert (len(summary["left_out"]["files"]), summary["mpp_sources"]) == (1, {"given": 4})
    assert [shard["index"] for shard in summary["shards"]] == [0, 1]
    before = [(tmp_path / name).read_bytes() for name in ("archive.parquet", "summary.json")]
    join_shards(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in ("archive.parquet", "summary.json")] == before
    folder_of_run(Shard(0, 2), tmp_path)  # begins anew
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"names": [*NAMES, "f"]}, "shard 1 is of another list of slides than shard 0"),
        ({"run": {**RUN, "release_sha256": "other"}}, "release_sha256 of shard 0 is r, of shard 1 other"),
        ({"run": {**RUN, "ended": "drained"}}, "shards without an end: 1/2"),
    ],
)
def test_what_is_not_one_archive_is_not_joined(tmp_path, second, words):
    end(Shard(0, 2), tmp_path, NAMES)
    end(Shard(1, 2), tmp_path, **{"names": NAMES, **second})
    with pytest.raises(InputError, match=words):
        join_shards(tmp_path)
    assert not (tmp_path / "archive.parquet").exists()


def test_a_folder_holds_one_way_to_share_an_archive_out(tmp_path):
    end(Shard(0, 2), tmp_path / "two", NAMES)
    for shard in (None, Shard(0, 3)):
        with pytest.raises(InputError, match="holds an archive in 2 shards; give --shard K/2"):
            folder_of_run(shard, tmp_path / "two")
    (tmp_path / "whole").mkdir()
    assert folder_of_run(None, tmp_path / "whole") == tmp_path / "whole"
    (tmp_path / "whole" / FILENAME).touch()
    with pytest.raises(InputError, match="holds an archive that is not in shards"):
        folder_of_run(Shard(0, 2), tmp_path / "whole")
    with pytest.raises(InputError, match="no shards; make them with"):
        join_shards(tmp_path)
