"""Tries a user's prompt template on made-up records, in a process with little time and memory.

Jinja's sandbox keeps a template from the machine's files and from Python, but not from ``'a' * 10**10`` or from loops
in loops, which would take all memory or all night.
"""

import os
from typing import Any

from etl.confinement import limit_memory, limit_time
from etl.errors import ConfigError, InvalidRecordError
from etl.ingest.prompts import PromptTemplate
from etl.processes import Parent

CPU_S = 5
MEMORY_BYTES = 256 * 1024**2
"""For one record; a usual template takes a tenth of a millisecond and no memory to speak of."""

SAMPLES: tuple[dict[str, Any], ...] = (
    {
        "id": "1", "name": "Rue Saint-Antoine", "url": "https://archive.example/1.jpg", "cote": "VM94,SY,D1",
        "description_source": "synthetic", "attributes": [{"trait_type": "Date", "value": "1932"}],
        "attributes_map": {"Date": "1932"}, "portal_record": {"Titre": "Rue Saint-Antoine", "Date": "1932"},
    },
    {},
)  # fmt: skip


def main(_config: dict[str, Any], parent: Parent) -> None:
    """Render the template that the parent sends for every sample, and answer; dies of what takes too much."""
    parent.send(b"ready")
    source = parent.recv().decode()
    limit_time(CPU_S)
    limit_memory(0, MEMORY_BYTES)
    try:
        _render_samples(source)
    except MemoryError:
        os._exit(1)
    parent.send(b"tried")


def _render_samples(source: str) -> None:
    """Raise `MemoryError` where memory ran out; whatever else is wrong the parent finds out by itself."""
    try:
        template = PromptTemplate(source)
    except ConfigError as error:
        _raise_memory_error(error)
        return
    for sample in SAMPLES:
        try:
            template.render(sample)
        except InvalidRecordError as error:
            _raise_memory_error(error)


def _raise_memory_error(error: Exception) -> None:
    if isinstance(error.__cause__, MemoryError):
        raise error.__cause__
