"""How a drill is counted and told."""

from clearway.drill import Answer, Drill, Moment, timeline

GOOD, BAD = "a" * 64, "b" * 64


def found(*answers: Answer, last: float = 10.4) -> Drill:
    moments = [Moment("verdict", 10.0), Moment("ledger: entry 3", 10.2), Moment("last answer of the bad version", last)]
    return Drill(BAD, 500.0, answers, [(GOOD, 0.5), (BAD, 0.7)], moments)


def test_what_the_bad_version_failed_is_its_own_and_everything_else_is_not() -> None:
    drilled = found(
        Answer(1, 2, 200, GOOD),
        Answer(1, 2, 500, BAD),
        Answer(1, 2, 200, BAD),
        Answer(1, 2, 503, GOOD),
        Answer(1, 2, None, None),
    )
    assert (drilled.own_failures, drilled.other_failures) == (1, 2)


def test_the_timeline_is_aligned_and_counts_from_the_verdict() -> None:
    text = timeline(found(Answer(1, 2, 500, BAD), Answer(1, 2, 200, GOOD)))
    lines = text.splitlines()
    assert lines[2].split() == ["2", BAD[:12], "700", "ms", "1", "1", "the", "bad", "one"]
    moments = [line for line in lines if line.endswith(" ms") and "goal" not in line]
    assert [line.split()[-2] for line in moments] == ["0", "200", "400"]
    assert len({len(line) for line in moments}) == 1
    assert "rolled back in 400 ms, within the goal" in text
    assert "NOT within the goal" in timeline(found(last=11.5))
