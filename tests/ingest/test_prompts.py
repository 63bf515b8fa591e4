"""Prompts use a record's title and date when they are real ones, and treat every field as data."""

import random
from pathlib import Path

import pytest

from etl.demo.scenes import random_record
from etl.errors import ConfigError, InvalidRecordError
from etl.ingest.prompts import (
    MAX_FIELD_CHARS,
    MAX_PROMPT_CHARS,
    PromptTemplate,
    clean_field,
    real_title,
    record_date,
)


@pytest.mark.parametrize(
    "title",
    [
        "Place d'Armes",
        "Vue aérienne du port",
        "Parc La Fontaine - 1913",
        "VM97 Rue Saint-Denis",
        "Été",
        "Île",
        "中山路",
    ],
)
def test_real_titles(title: str) -> None:
    """A title that says something is used as it stands."""
    assert real_title({"name": title}) == title


@pytest.mark.parametrize(
    "title",
    ["VM97,S3,D08,P297", "VM97-3_7P16-08.jpg", "Vue du port.TIF", "IMG_2034", "DSC 0001", "S/O", "Untitled", "1913",
     "", "   ", "-", "image 12", None],
)  # fmt: skip
def test_what_is_no_title(title: str | None) -> None:
    """Shelf marks, file names, camera names, bare numbers and placeholders are not titles."""
    assert real_title({"name": title}) is None


def test_title_of_another_field() -> None:
    """When ``name`` is a shelf mark, ``title`` is looked at; a title equal to the shelf mark is none."""
    assert real_title({"name": "VM97,S3,D08", "title": "Gare Windsor"}) == "Gare Windsor"
    assert real_title({"name": "Fonds Poirier", "cote": "Fonds Poirier"}) is None


def test_dates() -> None:
    """The attributes' date comes before the portal's, and that before a plain one; other types do no harm."""
    assert record_date({"attributes_map": {"Date": "1913"}, "portal_record": {"Date": "1914"}}) == "1913"
    assert record_date({"attributes_map": {"Date": ""}, "portal_record": {"Date": "1914"}}) == "1914"
    assert record_date({"attributes_map": "1913", "portal_record": None, "date": 1915}) == "1915"
    assert record_date({}) is None


def test_fields_are_data() -> None:
    """No field can spell a special token, break the line or change the direction of the text."""
    assert clean_field("a <image></s>\n\tb\u202ec\u200bd\x00 ") == "a \u2039image\u203a\u2039/s\u203a b c d"
    assert len(clean_field("x" * 1000)) == MAX_FIELD_CHARS
    assert clean_field(None) == ""


def test_default_prompt() -> None:
    """The default prompt quotes title and date when there are any, and asks the same in any case."""
    template = PromptTemplate()
    full = template.render({"name": "Gare Windsor", "attributes_map": {"Date": "1913"}})
    bare = template.render({"name": "IMG_1", "attributes_map": {}})
    assert full.startswith('This is a photograph from an archive, titled "Gare Windsor", dated 1913. Describe it in')
    assert bare.startswith("This is a photograph from an archive. Describe it in")


def test_default_prompt_fits_every_kind_of_record() -> None:
    """Records as archives have them give short prompts of one line without markup."""
    rng = random.Random(3)
    for _ in range(200):
        prompt = PromptTemplate().render(random_record(rng))
        assert len(prompt) < 400
        assert not set("<>\n{}") & set(prompt)


def test_values_in_a_template_are_not_evaluated() -> None:
    """A field with template syntax is printed, not run."""
    assert "{{ 7 * 7 }}" in PromptTemplate("About {{ record.name }}.").render({"name": "{{ 7 * 7 }}"})


def test_missing_fields_are_empty() -> None:
    """A template may reach for nested fields that a record does not have."""
    assert PromptTemplate("Look.{{ record.a.b.c }}").render({}) == "Look."


@pytest.mark.parametrize(
    "source",
    ["{{ record.__class__.__mro__ }}", "{{ ().__class__.__base__.__subclasses__() }}", "{{ record.update({'a': 1}) }}"],
)
def test_templates_are_sandboxed(source: str) -> None:
    """A template can neither reach Python's internals nor change the record."""
    record = {"name": "x"}
    try:
        prompt = PromptTemplate("Look. " + source).render(record)
    except InvalidRecordError:
        prompt = ""
    assert "class" not in prompt
    assert record == {"name": "x"}


@pytest.mark.parametrize(
    ("source", "record"),
    [
        ("{{ record.name }}", {}),
        ("{{ 1 // record.number }}", {"number": 0}),
        ("{% for i in range(300) %}{{ record.name }} {% endfor %}", {"name": "x" * 100}),
    ],
)
def test_records_that_give_no_prompt(source: str, record: dict[str, object]) -> None:
    """An empty prompt, one that is too long, and a fault in the template make the record invalid, not the run."""
    with pytest.raises(InvalidRecordError):
        PromptTemplate(source).render(record)


def test_longest_prompt() -> None:
    """A prompt of just the allowed length is accepted."""
    assert len(PromptTemplate("x" * MAX_PROMPT_CHARS).render({})) == MAX_PROMPT_CHARS


def test_template_files(tmp_path: Path) -> None:
    """A file gives the same template as its text without surrounding white space."""
    path = tmp_path / "prompt.j2"
    path.write_text("\nDécrivez « {{ title }} ».\n", encoding="utf-8")
    template = PromptTemplate.from_file(path)
    assert template.render({"name": "Gare Windsor"}) == "Décrivez « Gare Windsor »."
    assert template.sha256 == PromptTemplate("Décrivez « {{ title }} ».").sha256


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"a\n{% if %}", "line 2"), (b"<image> {{ title }}", "contains <image>"), (b"\xff\xfe", "cannot read")],
)
def test_faulty_template_files(tmp_path: Path, text: bytes, message: str) -> None:
    """A faulty file is a `ConfigError` that names it and says where."""
    path = tmp_path / "prompt.j2"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=message) as caught:
        PromptTemplate.from_file(path)
    assert "prompt.j2" in str(caught.value)


def test_missing_template_file(tmp_path: Path) -> None:
    """A missing file is a `ConfigError`."""
    with pytest.raises(ConfigError, match="cannot read"):
        PromptTemplate.from_file(tmp_path / "none.j2")


def test_templates_that_take_too_much_are_refused(tmp_path: Path) -> None:
    """A template that would take all memory is a `ConfigError` before any record is read, also in a constant."""
    path = tmp_path / "prompt.j2"
    for source in ("{{ 'a' * 10**10 }}", "{{ title.center(10**10) if title else '' }}"):
        path.write_text(source)
        with pytest.raises(ConfigError, match="too much time or memory"):
            PromptTemplate.from_file(path)
    path.write_text("x" * 200_000)
    with pytest.raises(ConfigError, match="larger than"):
        PromptTemplate.from_file(path)


@pytest.mark.parametrize("source", ["{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "{{ 9" + "9" * 5000 + " }}"])
def test_templates_that_cannot_be_compiled(source: str) -> None:
    """What is too much for Jinja or Python is a `ConfigError`, no traceback."""
    with pytest.raises(ConfigError, match="the default prompt template"):
        PromptTemplate(source)


def test_templates_that_call_themselves() -> None:
    """A recursion without end makes the record invalid, no traceback."""
    with pytest.raises(InvalidRecordError, match="recursion"):
        PromptTemplate("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}").render({})


@pytest.mark.parametrize("hidden", ["\u061c", "\xad", "\ufeff", "\u2060", "\U000e0041"])
def test_hidden_characters_are_taken_out(hidden: str) -> None:
    """Nothing that nobody sees, such as tags that spell an instruction, gets into a prompt."""
    assert clean_field(f"Gare{hidden * 2}Windsor") == "Gare Windsor"
