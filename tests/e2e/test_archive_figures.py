"""The figures of an archive's cost, taken on a real slide."""

import shutil

from m2ost_bench.archive.stages import measure_stages
from m2ost_client.archive import Settings


def test_every_stage_of_a_slide_is_measured(narrow_release, svs, tmp_path):
    slides = [tmp_path / f"{n}{svs.suffix}" for n in range(2)]
    for path in slides:
        shutil.copyfile(svs, path)
    costs, (slide,) = measure_stages(
        narrow_release, slides, tmp_path / "out", settings=Settings(pitch_um=200.0), batch_rows=8, written_spots=100
    )
    assert slide["spots"] > 1
    assert costs.describe_s == slide["describe_s"] > 0
    assert costs.write_s == slide["write_s"] > 0
    for stage in ("decode_s", "cut_s", "infer_s"):
        assert getattr(costs, stage) == slide[stage] / slide["spots"] > 0
    assert {table.stem for table in (tmp_path / "out" / "results").glob("*.h5ad")} == {"0", "1"}
