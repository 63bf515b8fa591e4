"""Split and merge: whatever is split, done and brought back in any order is what a run that was not split gives."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.parts import Work, records
from support.states import assert_sound

from etl.domain.statuses import RunState
from etl.errors import ConfigError, StateError, StateSplitError
from etl.ingest.options import IngestOptions, Selection
from etl.ingest.prompts import PromptTemplate
from etl.run.pipeline import run_pipeline
from etl.run.plan import Plan
from etl.settings import Settings
from etl.state.read.cost import cost
from etl.state.read.failures import failed_items
from etl.state.read.reader import Reader
from etl.state.read.runs import latest_runs

OPTIONS = IngestOptions(template=PromptTemplate("Describe {{ title }}."), selection=Selection(limit=25))
NAMES = [f"{n}{kind}.jpg" for n in range(6) for kind in ("", "gone", "same", "long")]


@pytest.fixture
def whole(tmp_path: Path) -> Work:
    """Return a state with a manifest in which pictures are shared, gone, equal, or cannot be captioned."""
    work = Work(tmp_path / "whole" / "state")
    work.state.parent.mkdir()
    work.ingest(records([*NAMES, *NAMES[:5]]), OPTIONS)
    return work


@st.composite
def campaigns(draw: st.DrawFn) -> tuple[list[str], int, int, int, list[tuple[int, str]]]:
    """Draw a manifest, how much of it is done before, the parts, and what happens to them in which order."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=20))
    count = draw(st.integers(2, 4))
    steps = st.tuples(st.integers(0, count - 1), st.sampled_from(["fetch", "caption", "finish", "merge"]))
    return (
        names, draw(st.integers(0, 8)), draw(st.integers(0, 8)), count,
        draw(st.lists(steps, max_size=12)),
    )  # fmt: skip


@settings(max_examples=3, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(campaign=campaigns())
def test_split_work_is_that_of_one_run(campaign: tuple[list[str], int, int, int, list[tuple[int, str]]]) -> None:
    """Split into parts, done in pieces, merged in any order and some twice: the same lines, stories and history."""
    names, fetched, captioned, count, steps = campaign
    with tempfile.TemporaryDirectory() as directory:
        one, two = (Work(Path(directory) / name / "state") for name in ("one", "two"))
        for work in one, two:
            work.state.parent.mkdir()
            work.ingest(records(names), OPTIONS)
            work.fetch(fetched)
            work.caption(captioned)
        one.finish()
        _, parts = two.split(count, Path(directory) / "parts")
        for number, step in steps:
            if step == "merge":
                two.merge(parts[number])
                assert_sound(two.state)
            elif step == "finish":
                parts[number].finish()
            else:
                getattr(parts[number], step)(2)
        for part in parts:
            part.finish()
            assert_sound(part.state)
        two.merge(*reversed(parts))
        assert_sound(two.state)
        assert two.export() == one.export()
        assert two.history() == one.history()
        before = two.dump()
        assert all(summary.rows.changed == 0 for summary in two.merge(*parts, check=True))
        assert two.dump() == before
        gathered = Work(Path(directory) / "new" / "state")
        gathered.merge(*parts)
        assert_sound(gathered.state)
        assert gathered.export() == one.export()
        assert gathered.history() == one.history()


def test_parts_divide_the_records(whole: Work, tmp_path: Path) -> None:
    """Each record goes to one part; those that share a picture to the same; done and open work are dealt evenly."""
    whole.fetch(12)
    summary, parts = whole.split(2, tmp_path / "parts")
    of_key = {key: n for n, part in enumerate(parts) for (key,) in part.rows("SELECT key FROM records")}
    assert len(of_key) == sum(part.records for part in summary.parts) == len(NAMES) + 5
    shared = whole.rows("SELECT group_concat(r.key) FROM records r JOIN sources s ON s.id = r.source "
                        "GROUP BY coalesce('i' || s.image, s.id)")  # fmt: skip
    assert all(len({of_key[key] for key in keys.split(",")}) == 1 for (keys,) in shared)
    for status in "ready", "done":
        share = [part.rows("SELECT count(*) FROM sources WHERE status = ?", status)[0][0] for part in parts]
        assert max(share) - min(share) <= 3, share
    again = Work(tmp_path / "twin" / "state")
    shutil.copytree(whole.state.parent, tmp_path / "twin")
    again.execute("DELETE FROM split_parts")
    again.execute("DELETE FROM splits")
    _, twins = again.split(2, tmp_path / "twins")
    for part, twin in zip(parts, twins, strict=True):
        assert part.rows("SELECT key FROM records ORDER BY id") == twin.rows("SELECT key FROM records ORDER BY id")


def test_files_are_linked_or_copied(whole: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and originals are linked on one file system and copied across; nobody notices the difference."""
    whole.change(keep_originals=True)
    whole.fetch(12)
    one, _ = whole.split(2, tmp_path / "parts")
    assert sum(part.linked for part in one.parts) == 2 * whole.rows("SELECT count(*) FROM images")[0][0]

    def refused(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refused)
    two, parts = whole.split(2, tmp_path / "other", force=True)
    assert [part.copied for part in two.parts] == [part.linked for part in one.parts]
    for part in parts:
        part.finish()
        assert_sound(part.state)
    merged = whole.merge(*parts, check=True)
    assert sum(summary.copied for summary in merged) > 0
    assert all(path.stat().st_nlink <= 2 for path in whole.state.rglob("*.jpg"))
    missing = [sha for (sha,) in whole.rows("SELECT working_sha256 FROM images WHERE state = 'present'")
               if not (whole.state / "images/working" / sha[:2] / f"{sha}.jpg").exists()]  # fmt: skip
    assert missing == []


def test_a_split_state_refuses_to_do_the_work_twice(whole: Work, tmp_path: Path) -> None:
    """While parts are out fetch, caption and run are refused; all back, or given up, the state is itself again."""
    _, parts = whole.split(2, tmp_path / "parts")
    plan = Plan(fetch=True)
    runs = whole.rows("SELECT count(*) FROM runs")
    with pytest.raises(StateSplitError, match=r"2 parts in .*parts, of which 0"):
        run_pipeline(whole.settings, plan, lambda _: None)
    with pytest.raises(StateSplitError):  # before anybody looks for a model, which is for the parts
        run_pipeline(replace(whole.settings, model="./nowhere"), Plan(fetch=True, caption=True), lambda _: None)
    assert whole.rows("SELECT count(*) FROM runs") == runs
    with pytest.raises(StateSplitError, match="already split into 2 parts"):
        whole.split(3, tmp_path / "else")
    parts[0].finish()
    parts[1].fetch()
    whole.merge(*parts)
    with pytest.raises(StateSplitError, match="of which 1"):
        run_pipeline(whole.settings, plan, lambda _: None)
    assert whole.merge(parts[1], final=True)[0].rows.closed
    assert run_pipeline(whole.settings, plan, lambda _: None).state in (RunState.DONE, RunState.PARTIAL)


def test_merge_refuses_what_does_not_belong(whole: Work, tmp_path: Path) -> None:
    """Another manifest, another size of pictures, the state itself, a part that lost sources: one clear line each."""
    whole.fetch(8)
    _, parts = whole.split(2, tmp_path / "parts")
    stranger = Work(tmp_path / "stranger" / "state")
    stranger.state.parent.mkdir()
    stranger.ingest([{"id": "else", "url": "http://a.example/0.jpg"}])
    before = whole.dump()
    with pytest.raises(ConfigError, match="of another manifest"):
        whole.merge(stranger)
    with pytest.raises(ConfigError, match="is the state itself"):
        whole.merge(whole)
    with pytest.raises(ConfigError, match="no state database in"):
        whole.merge(Work(tmp_path / "nowhere"))
    parts[0].execute("UPDATE images SET longest_edge = 512")
    with pytest.raises(ConfigError, match="longest edge of 512, those of this state 1024"):
        whole.merge(parts[0])
    parts[1].execute("UPDATE sources SET url = url || '?' WHERE id = (SELECT max(id) FROM sources)")
    with pytest.raises(StateError, match="1 of the sources that part 2 was given"):
        whole.merge(parts[1])
    assert whole.dump() == before


def test_a_state_of_the_same_manifest_is_merged_by_keys(whole: Work, tmp_path: Path) -> None:
    """A state that was made apart counts for the records that both know; the others are left out and counted."""
    other = Work(tmp_path / "apart" / "state")
    other.state.parent.mkdir()
    more = [*records([*NAMES, *NAMES[:5]]), {"id": "extra", "url": "http://a.example/extra.jpg"}]
    other.ingest(more, OPTIONS)
    other.finish()
    summary = whole.merge(other)[0]
    assert summary.rows.unknown == 1
    assert_sound(whole.state)
    done = Work(tmp_path / "done" / "state")
    done.state.parent.mkdir()
    done.ingest(records([*NAMES, *NAMES[:5]]), OPTIONS)
    done.finish()
    assert whole.export() == done.export()
    assert whole.rows("SELECT count(*) FROM images") == done.rows("SELECT count(*) FROM images")


def test_other_words_and_other_recipes(whole: Work, tmp_path: Path) -> None:
    """Of two captions the later counts, in whatever order they come; recipes come along."""
    whole.fetch()
    texts = {}
    for order in ("ab", "ba"):
        state = Work(tmp_path / order / "state")
        shutil.copytree(whole.state.parent, tmp_path / order)
        if order == "ab":
            parts = {}
            for name in order:
                parts[name] = Work(tmp_path / f"{name}-part" / "state")
                shutil.copytree(whole.state.parent, tmp_path / f"{name}-part")
                parts[name].caption(recipe="one", words=f"By {name}")
            parts["b"].execute("UPDATE captions SET done_at = done_at + 5000")
        summaries = [state.merge(parts[name])[0] for name in order]
        assert [summary.rows.different > 0 for summary in summaries] == [False, True]
        assert all(summary.rows.changed == 0 for summary in state.merge(*parts.values()))
        assert_sound(state.state)
        texts[order] = state.export()
        assert '"vlm_caption":"By b' in texts[order] and "By a" not in texts[order]
    assert texts["ab"] == texts["ba"]
    other = Work(tmp_path / "a-part" / "state")
    other.caption(recipe="two", words="In two")
    for order in ("ab", "ba"):
        state = Work(tmp_path / order / "state")
        assert state.merge(other)[0].rows.recipes == 1
        assert_sound(state.state)
        assert '"vlm_caption":"In two' in state.export()
        assert '"vlm_caption":"By b' in state.export(recipe=state.rows(
            "SELECT sha256 FROM recipes WHERE model = 'one'")[0][0])  # fmt: skip


@pytest.mark.parametrize("check", [False, True])
def test_a_damaged_picture_is_fetched_again(whole: Work, tmp_path: Path, check: bool) -> None:
    """A file that a part lost or damaged is not promised; its captions count, and it is fetched again."""
    _, parts = whole.split(2, tmp_path / "parts")
    for part in parts:
        part.finish()
    files = sorted(parts[0].state.rglob("*.jpg"))
    files[0].unlink()
    # Sizes alone tell what was cut short; that the content is another one takes a look.
    files[1].write_bytes(b"x" * (files[1].stat().st_size - (not check)))
    lost = [summary.lost for summary in whole.merge(*parts, check=check)]
    assert lost == [2, 0]
    assert_sound(whole.state)
    assert whole.rows("SELECT count(*) FROM images WHERE state = 'missing'") == [(2,)]
    waiting = whole.rows("SELECT count(*) FROM sources s JOIN images i ON i.id = s.image WHERE s.status = 'ready' "
                         "AND i.state = 'missing'")  # fmt: skip
    assert waiting[0][0] >= 2
    assert whole.rows("SELECT count(*) FROM records WHERE state = 'active' AND outcome = 'pending'") == [(0,)]
    whole.fetch()
    assert whole.rows("SELECT count(*) FROM images WHERE state <> 'present'") == [(0,)]


def test_a_caption_counts_for_every_record_of_its_picture(tmp_path: Path) -> None:
    """The same bytes fetched in two parts and captioned in one: both records are captioned, whichever came first."""
    work = Work(tmp_path / "whole" / "state")
    work.state.parent.mkdir()
    work.ingest([{"id": key, "url": f"http://a.example/{key}same.jpg"} for key in "ab"])
    _, parts = work.split(2, tmp_path / "parts")
    parts[0].fetch()
    parts[1].finish()
    work.merge(*parts)
    assert_sound(work.state)
    assert work.rows("SELECT key, outcome FROM records ORDER BY key") == [("a", "captioned"), ("b", "captioned")]


def test_history_and_cost(whole: Work, tmp_path: Path) -> None:
    """Runs of the parts are runs of the state, once each; so what they cost is what it cost."""
    whole.change(gpu_price=3.6)
    _, parts = whole.split(2, tmp_path / "parts")
    for part in parts:
        part.change(gpu_price=3.6)
        part.finish()
        part.execute("UPDATE runs SET ended_at = started_at + 60000 WHERE stages = 'caption'")
    whole.merge(*parts, parts[0])
    with Reader(whole.state) as reader:
        assert [run.stages for run in latest_runs(reader)].count(("caption",)) == 2
        spent = cost(reader)
        assert spent is not None and spent.total == pytest.approx(0.12, abs=0.02)
        assert next(iter(failed_items(reader))).key


def test_split_refuses_what_cannot_be_split(whole: Work, tmp_path: Path) -> None:
    """A state without records, a manifest half read, and a place that is taken are refused before anything changes."""
    empty = Work(tmp_path / "empty" / "state")
    empty.execute("SELECT 1")
    with pytest.raises(ConfigError, match="no records to split"):
        empty.split(2, tmp_path / "parts")
    (tmp_path / "parts" / "part-2").mkdir(parents=True)
    with pytest.raises(ConfigError, match="part-2 is there already"):
        whole.split(2, tmp_path / "parts")
    whole.execute("UPDATE manifests SET complete = 0")
    with pytest.raises(ConfigError, match="was not read to its end"):
        whole.split(2, tmp_path / "new")
    assert whole.rows("SELECT count(*) FROM splits") == [(0,)]


def test_settings_know_no_parts() -> None:
    """Nothing of a split is a setting: a part runs with whatever the machine has."""
    assert not {name for name in Settings.__dataclass_fields__ if "part" in name or "split" in name}


def test_flags_of_pictures_come_back(tmp_path: Path) -> None:
    """What each part has seen of one host's URLs is put together; what a part skipped is skipped, and it is done."""
    whole = Work(tmp_path / "whole" / "state", skip_flag=("placeholder",))
    whole.state.parent.mkdir()
    whole.ingest(records([f"{n}same.jpg" for n in range(6)] + ["1.jpg"]))
    _, parts = whole.split(2, tmp_path / "parts")
    for part in parts:
        part.finish()
        whole.merge(part)
    assert whole.rows("SELECT flags, count(*) FROM images GROUP BY flags") == [("", 1), ("placeholder", 1)]
    assert whole.rows("SELECT outcome, count(*) FROM records GROUP BY outcome") == [("captioned", 7)]

    skipping = Work(tmp_path / "skipping" / "state", skip_flag=("placeholder",))
    skipping.state.parent.mkdir()
    skipping.ingest(records([f"{n}same.jpg" for n in range(20)] + ["1.jpg"]))
    _, parts = skipping.split(2, tmp_path / "more")
    for part in parts:
        part.change(skip_flag=("placeholder",))
        part.finish()
        skipping.merge(part)
    assert dict(skipping.rows("SELECT outcome, count(*) FROM records GROUP BY outcome")) == {
        "captioned": 1, "skipped": 20,
    }  # fmt: skip
    assert skipping.rows("SELECT DISTINCT closed FROM split_parts") == [(1,)]
    assert_sound(skipping.state)
