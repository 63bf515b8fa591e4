"""What is looked at before a run begins: whatever would end it hours later is said now, the nearest thing first."""

from pathlib import Path

from etl.caption.backends import check_model
from etl.errors import StateMissingError
from etl.export.stage import STDOUT, check_target
from etl.fetch.mirrors import Mirrors
from etl.ingest.manifest import Manifest, near_manifests
from etl.output_file import resolved
from etl.ray_cluster.connection import check as check_cluster
from etl.run.checks.room import require_room
from etl.run.plan import Plan
from etl.run.sources import manifests_of
from etl.settings import Settings
from etl.state.parts.split import refuse_split
from etl.state.read.reader import Reader
from etl.state.read.sources import active_lines
from etl.state.recognise import spare_own_files


def check(settings: Settings, plan: Plan) -> tuple[Manifest, ...]:
    """Return the manifests that the plan names, after a look at all that it needs.

    What is to be read comes first, and whether it is to be worked on here, then what is to be written, then the model,
    then what this machine and its network must bear.  Raises what
    `etl.run.pipeline.run_pipeline` raises before anything begins.
    """
    manifests = manifests_of(plan.sources)
    if not manifests and plan.fetch and plan.caption:
        _look_at_state(settings)
    if (plan.fetch or plan.caption) and not plan.force:
        refuse_split(settings.state)
    if plan.output is not None:
        check_target(plan.output, plan.export)
        if plan.output != STDOUT:
            spare_own_files(settings.state, resolved(plan.output))
    if plan.caption:
        check_model(settings)
    if plan.fetch:
        require_room(settings)
        check_mirrors(settings, known=not manifests)
        if settings.fetch_backend == "ray":
            check_cluster(settings.ray_address, "--fetch-backend ray", insecure=settings.insecure)
    return manifests


def check_mirrors(settings: Settings, *, known: bool) -> None:
    """Raise `ConfigError` for mirrors that are wrongly given; where records are ``known``, for fields of none too."""
    mirrors = Mirrors.of(settings)
    if known and mirrors.needs_record:
        with Reader(settings.state) as reader:
            mirrors.check(active_lines(reader))


def _look_at_state(settings: Settings) -> None:
    """Raise where there is nothing to go on with, and say how to begin."""
    try:
        with Reader(settings.state):
            pass
    except StateMissingError as error:
        found = near_manifests(Path())
        cure = f"run `etl run {found[0] if found else 'manifest.jsonl'} -o captions.jsonl`"
        if len(found) > 1:
            cure += f" ({', '.join(found[1:])} {'is' if len(found) == 2 else 'are'} here, too)"
        what = f"no manifest was named, and there is no state database in {settings.state} to go on with"
        raise StateMissingError(what).with_cure(cure) from error
