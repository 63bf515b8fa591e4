"""Which recipes captions were made with."""

from dataclasses import dataclass

from etl.state.read.reader import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeRow:
    """One recipe as stored; ``spec`` is its canonical JSON."""

    id: int
    sha256: str
    model: str
    revision: str
    spec: str
    current: bool


def all_recipes(reader: Reader) -> list[RecipeRow]:
    """Return all recipes, oldest first."""
    rows = reader.rows("SELECT id, sha256, model, revision, spec, current FROM recipes ORDER BY id")
    return [
        RecipeRow(id=number, sha256=sha256, model=model, revision=revision, spec=spec, current=bool(current))
        for number, sha256, model, revision, spec, current in rows
    ]
