"""Splits: disjoint, complete, whole patients, and what is refused."""

import pytest
from m2ost.data.errors import DataError
from m2ost.data.splits import Split, leave_one_out, read_split, split_sections

from .files import section


@pytest.fixture(scope="module")
def sections():
    return [section([[1]], name=f"{patient}{i}", patient=patient) for patient in "ABCDE" for i in range(1, 5)]


@pytest.mark.parametrize("by", ["section", "patient"])
@pytest.mark.parametrize("seed", range(5))
def test_parts_are_disjoint_and_complete(sections, by, seed):
    split = split_sections(sections, by=by, seed=seed)
    names = [*split.train, *split.validation, *split.test]
    assert sorted(names) == sorted(s.name for s in sections)
    assert split == split_sections(sections, by=by, seed=seed)


def test_shares_are_those_of_the_article(sections):
    split = split_sections(sections)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [12, 2, 6]


@pytest.mark.parametrize("seed", range(5))
def test_by_patient_keeps_patients_together(sections, seed):
    split = split_sections(sections, by="patient", seed=seed)
    patients = [{name[0] for name in part} for part in (split.train, split.validation, split.test)]
    assert sum(map(len, patients)) == 5
    assert set.union(*patients) == set("ABCDE")


@pytest.mark.parametrize(("by", "folds"), [("section", 20), ("patient", 5)])
def test_leave_one_out_tests_every_group_once(sections, by, folds):
    splits = list(leave_one_out(sections, by=by))
    assert len(splits) == folds
    tests = [name for split in splits for name in split.test]
    assert sorted(tests) == sorted(s.name for s in sections)
    for split in splits:
        assert len({*split.train, *split.validation, *split.test}) == 20
        if by == "patient":
            assert {n[0] for n in split.test}.isdisjoint(n[0] for n in (*split.train, *split.validation))


def test_a_split_comes_back_from_its_file(tmp_path, sections):
    split = split_sections(sections)
    split.write(tmp_path / "split.yaml")
    assert read_split(tmp_path / "split.yaml") == split


def test_what_cannot_be_split(sections):
    with pytest.raises(DataError, match="2 patients cannot be split in three"):
        split_sections(sections[:8], by="patient")
    with pytest.raises(DataError, match="leaving one out needs three"):
        list(leave_one_out(sections[:2]))
    with pytest.raises(DataError, match="not by 'slide'"):
        split_sections(sections, by="slide")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": ("a",), "validation": ("a",)}, "section a stands twice"),
        ({"train": ("a",), "validation": ("b",), "test": ("a",)}, "section a stands twice"),
        ({"train": (), "validation": ("b",)}, "split.train names no section"),
    ],
)
def test_a_split_that_leaks_or_is_empty_is_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        Split(**parts)


@pytest.mark.parametrize(
    "text", ["", "[1]", "train: [a]\nvalidation: [a]", "train: [a]", "train: [a]\nvalidation: [b]\nmore: [c]", "a: ["]
)
def test_a_file_that_is_no_split_is_named(tmp_path, text):
    path = tmp_path / "split.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"split.yaml: no split"):
        read_split(path)
    with pytest.raises(DataError, match="no split"):
        read_split(tmp_path / "absent.yaml")
