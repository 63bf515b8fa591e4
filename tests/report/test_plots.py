"""Time laid end to end, lines that fit their frame, and costs that add up."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.domain.statuses import RunState
from etl.domain.views import RunInfo
from etl.report.plots import HEIGHT, WIDTH, Series, _round_up, plot
from etl.report.summary import _cost_over_time
from etl.report.timeline import Timeline


def run(start: int, end: int, number: int = 1) -> RunInfo:
    """Return a run over these instants."""
    return RunInfo(
        id=number,
        uid=f"{number:012x}",
        stages=("caption",),
        state=RunState.DONE,
        started_at=start,
        heartbeat_at=end,
        ended_at=end,
        host="here",
        pid=1,
    )


def test_gaps_between_runs_take_no_time() -> None:
    """Two runs with a night between them follow each other; what was done between them counts at the first's end."""
    line = Timeline([run(10_000, 10_100), run(1000, 1500)])
    assert line.busy == 600
    assert [line.place(at) for at in (0, 1000, 1500, 5000, 10_000, 10_100, 20_000)] == [0, 0, 500, 500, 500, 600, 600]


def test_runs_that_overlap_count_once() -> None:
    """An export beside a long run adds no time."""
    assert Timeline([run(0, 100), run(20, 50), run(90, 130)]).busy == 130


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 100)), min_size=1), st.integers(2, 50))
def test_nothing_is_lost_between_stretches(runs: list[tuple[int, int]], buckets: int) -> None:
    """Time never goes back, and whatever was done is in one of the stretches."""
    line = Timeline([run(start, start + took) for start, took in runs])
    places = [line.place(at) for at in range(-10, 1200, 7)]
    assert all(a <= b for a, b in pairwise(places))
    assert min(places) >= 0
    assert max(places) <= line.busy
    counts = {at: at % 5 for at in range(0, 1100, 13)}
    assert sum(line.gather(counts, buckets)) == sum(counts.values())


def test_money_is_spent_evenly_and_in_full() -> None:
    """At the end all runs have cost what they cost; in the middle of the only paid one, half of it."""
    runs = [run(0, 1000, 1), run(5000, 6000, 2)]
    spent = _cost_over_time(runs, {2: 8.0}, Timeline(runs), 5)
    assert spent == pytest.approx([0, 0, 0, 4, 8])


@given(st.floats(1e-6, 1e12))
def test_an_axis_ends_at_a_round_number_that_is_large_enough(value: float) -> None:
    """No line leaves its frame, and none lies flat at the bottom."""
    top = _round_up(value)
    assert value <= top <= 2.0001 * value
    assert re.fullmatch(r"(1\.0|2\.0|2\.5|5\.0)e[+-]\d+", f"{top:.1e}")
    assert _round_up(0) == 1


def test_a_plot_is_well_formed_and_stays_in_its_frame() -> None:
    """Names are escaped, and every point lies inside the picture."""
    text = plot("<b>&", [Series("a<b", [0, 3, 7.5], "fetch")], span_h=2, breaks=[0.5], unit="a minute")
    figure = ElementTree.fromstring(text)
    [line] = figure.findall("svg/polyline")
    points = line.attrib["points"].split()
    assert len(points) == 3
    for point in points:
        x, y = map(float, point.split(","))
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT
