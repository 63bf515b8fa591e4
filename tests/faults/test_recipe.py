"""Another model or prompt in the middle of the work: old captions stay, exports are never mixed, going back is free."""

import json
from collections import Counter
from pathlib import Path

from support.common_check import check_state
from support.etl_process import Program
from support.workbench import PlainCaptioner, Workbench, scenes
from support.zygote import Zygote

from etl.export.stage import ExportOptions
from etl.ingest.options import IngestOptions
from etl.ingest.prompts import PromptTemplate
from etl.run.pipeline import export_manifest
from etl.run_control import RunControl

PICTURES = 8
HALF = 4

KEYS = [f"r{n}" for n in range(PICTURES)]

SECOND_PROMPT = IngestOptions(template=PromptTemplate("What is in picture {{ record.id }}?"))


class Model(PlainCaptioner):
    """A captioner whose captions name it, and which can be stopped in the middle."""

    def caption_some(self, bench: Workbench, count: int | None = None) -> int:
        """Caption about so many, by default all that is left, in a run; return how many were made."""
        control, before = RunControl(), self.captions
        self.before = lambda _: control.stop() if self.captions - before == count else None
        bench.caption(self, control)
        return self.captions - before


def export(bench: Workbench, output: Path, recipe: str | None = None) -> None:
    export_manifest(bench.settings, str(output), ExportOptions(recipe=recipe, only_captioned=False))


def made_by(bench: Workbench) -> dict[str, int]:
    """Return how many finished captions there are of each model."""
    sql = (
        "SELECT p.model, count(*) FROM captions c JOIN recipes p ON p.id = c.recipe WHERE c.status = 'done' GROUP BY 1"
    )
    return dict(bench.rows(sql))


def test_model_and_prompt_change_in_the_middle(tmp_path: Path, plain_zygote: Zygote) -> None:
    """Some by one model, all by another, the rest by the first; the same with the prompt: no caption is made twice."""
    for n, (_, body) in enumerate(scenes(PICTURES)):
        (tmp_path / f"{n}.jpg").write_bytes(body)
    records = [{"id": key, "path": f"{n}.jpg"} for n, key in enumerate(KEYS)]
    bench, output = Workbench(tmp_path, batch_size=2), tmp_path / "out.jsonl"
    program = Program(tmp_path, zygote=plain_zygote)
    bench.ingest(*records)
    bench.fetch()
    first, second = Model("first"), Model("second")

    some = first.caption_some(bench, HALF)
    assert HALF <= some < PICTURES
    assert second.caption_some(bench) == PICTURES
    export(bench, output)
    assert sources_of(output) == {"second@1": PICTURES}
    check_state(bench.state, output=output, keys=KEYS, program=program)
    export(bench, tmp_path / "half.jsonl", first.recipe.sha256[:12])
    assert sources_of(tmp_path / "half.jsonl") == {"first@1": some, None: PICTURES - some}

    assert first.caption_some(bench) == PICTURES - some
    export(bench, output)
    assert sources_of(output) == {"first@1": PICTURES}
    assert made_by(bench) == {"first": PICTURES, "second": PICTURES}
    before = check_state(bench.state, output=output, keys=KEYS, program=program)

    bench.ingest(*records, options=SECOND_PROMPT)
    assert first.caption_some(bench, HALF) == some
    export(bench, tmp_path / "half.jsonl")
    assert sources_of(tmp_path / "half.jsonl") == {"first@1": some, None: PICTURES - some}
    bench.ingest(*records)
    assert first.caption_some(bench) == 0
    export(bench, output)
    assert check_state(bench.state, output=output, keys=KEYS, program=program) == before
    bench.ingest(*records, options=SECOND_PROMPT)
    assert first.caption_some(bench) == PICTURES - some
    export(bench, output)
    after = check_state(bench.state, output=output, keys=KEYS, program=program)
    assert after is not None and all(f"picture {key}?" in after.captioned[key] for key in KEYS)
    for model in (first, second):
        pulled = Counter(item.id for call in model.calls for item in call)
        assert set(pulled.values()) == {1}, "a caption was made twice"


def sources_of(output: Path) -> dict[str | None, int]:
    """Return how many lines of an export name which source of their caption."""
    return dict(Counter(json.loads(line).get("vlm_caption_source") for line in output.read_text().splitlines()))
