"""The first of the requests of ``make attack``, on the server that no test may harm."""

from tests.attack import grammar, requests

COUNT = 4 * len(grammar.KINDS)


def test_hostile_requests_find_a_server_that_is_none_the_worse(narrow_server, narrow_log, svs, trap):
    ground = requests.ground_of(narrow_server, svs, trap)
    report = requests.run(narrow_server, narrow_log, ground, seed=7, count=COUNT, block=COUNT // 2)
    assert report.faults == []
    assert (report.requests, sum(sum(found.values()) for found in report.outcomes.values())) == (COUNT, COUNT)
    assert set(report.outcomes) == {grammar.attack(ground, 7, number).kind for number in range(COUNT)}


def test_a_request_is_made_of_its_seed_and_number_alone(svs, trap):
    ground = grammar.Ground(requests.target.Slide("wsi/a.svs", (2000, 1500)), trap, 6)
    made = [grammar.attack(ground, 3, number) for number in range(len(grammar.KINDS))]
    again = [grammar.attack(ground, 3, number) for number in reversed(range(len(grammar.KINDS)))]
    assert [(a.kind, a.method, len(a.message)) for a in made] == [
        (a.kind, a.method, len(a.message)) for a in reversed(again)
    ]
    assert made[0] != grammar.attack(ground, 4, 0)


def test_a_file_that_is_opened_outside_the_roots_is_seen(trap):
    with requests.Watch([trap.outside]) as watch:
        (trap.outside / "canary.png").read_bytes()
    assert set(watch.opened) == {"canary.png"}
