"""Commands to a state or to the run at work on it: retry-failed, pause, resume, stop."""

from typing import Annotated

import typer

from etl.cli import render
from etl.cli.inspection import ClassOption, HostOption, KeyOption, StageOption
from etl.cli.options import Context, command
from etl.errors import EtlError, StateLockedError
from etl.models import FailureFilter
from etl.state import control


def register(app: typer.Typer) -> None:
    """Add the commands."""

    @command(app, name="retry-failed")
    def retry_failed(
        context: Context,
        stage: StageOption = None,
        error_class: ClassOption = None,
        host: HostOption = None,
        key: KeyOption = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    ) -> None:
        """Put failed items back to ready, with their attempts forgotten and their history kept."""
        from etl.state.store import Store

        chosen = FailureFilter(stage, error_class, host, key)
        try:
            with Store.open(context.settings, create=False) as store:
                counts = store.retry_failed(chosen, dry_run=dry_run)
        except StateLockedError:
            if dry_run:
                raise
            # The run that holds the state does it for us.
            _tell(context, control.send(context.settings.state, control.RETRY, chosen))
            return
        if context.json:
            render.answer(counts)
            return
        verb = "would be" if dry_run else "are"
        for name, n in counts.items():
            render.note(context, f"{name}: {n:,} failed items {verb} ready again")
        if any(counts.values()) and not dry_run:
            render.note(context, "now run `etl run` (or `etl fetch` and `etl caption`) again")

    def _register(name: str, text: str) -> None:
        def send(context: Context) -> None:
            _tell(context, control.send(context.settings.state, name))

        send.__doc__ = text
        command(app, name=name)(send)

    _register(control.PAUSE, "Let the run at work claim nothing more until it is resumed.")
    _register(control.RESUME, "Let a paused run go on.")
    _register(control.STOP, "Let the run at work finish what is in flight, and end.")


def _tell(context: Context, reply: str | None) -> None:
    if reply is None:
        raise EtlError("the run has not answered in time; it may still obey: see `etl status`")
    if context.json:
        render.answer({"answer": reply})
    else:
        render.note(context, reply)
