"""Records' values in prompts, and templates of all kinds: plain bounded text or an error of ours."""

import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fuzzing import SOAK_FACTOR, Tally, inputs, own_memory

from etl.errors import CaptionError, ConfigError, InvalidRecordError
from etl.ingest.prompts import MAX_FIELD_CHARS, MAX_PROMPT_CHARS, PromptTemplate, clean_field
from etl.settings import Settings

VALUES, TEMPLATES = 150, 125
MEMORY = 64 * 2**20

SPELLINGS = (
    "<image>", "</s>", "<s>", "<pad>", "<|im_start|>", "[INST]", "<unk>", "USER:", "ASSISTANT:", "\n", "\r\n", "\t",
    "\0", "\x1b[31m", "\x7f", "\x9b", "\u200b", "\u202e", "\u2066", "\u061c", "\ufeff", "\u2028", "\xad", "\ud800",
    "\udfff", "\U000e0041", "\u0301" * 50, "{{ 7 * 7 }}", "{% raw %}", "{#", "%}", "<", ">", "<imag", "e>",
    "\uff1cimage\uff1e",
    "é", "中山路", "🎈", "'", '"', "\\", "\\u003cimage\\u003e", "&lt;image&gt;", "rue", "1913", " ",
)  # fmt: skip
FIELDS = ("name", "title", "cote", "date", "attributes_map", "portal_record", "other", "<image>", "a\nb")
HIDDEN = {"Cc", "Cs", "Zl", "Zp"}
TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}

EVERYTHING = PromptTemplate("{% for key, value in (record or {}).items() %}{{ key }}: {{ value }}; {% endfor %}")
USUAL = PromptTemplate()


def text(rng: random.Random) -> str:
    return "".join(rng.choices(SPELLINGS, k=rng.choice((0, 1, 3, 40)))) * rng.choice((1, 1, 1, 300))


def value(rng: random.Random, depth: int = 0) -> Any:
    plain = (None, True, 0, -1.5, 1e308, float("nan"), 10**600, text(rng), text(rng), text(rng), b"x")
    if depth > 3 or rng.random() < 0.7:
        return rng.choice(plain)
    inner = [value(rng, depth + 1) for _ in range(rng.choice((0, 1, 5)))]
    return rng.choice((inner, {rng.choice(("Date", "a", text(rng))): one for one in inner}))


def deep(rng: random.Random) -> Any:
    nested: Any = text(rng)
    for _ in range(rng.choice((10, 190))):
        nested = rng.choice(([nested], {"Date": nested}))
    return nested


VALUE_KINDS: dict[str, Callable[[random.Random], Any]] = {
    "texts": text, "any type": value, "nested": deep, "giant": lambda rng: text(rng) * 20,
}  # fmt: skip

FRAGMENTS = (
    "{{ record.", "{{ title", "}}", "{% for x in record %}", "{% endfor %}", "{% if ", "%}", "{% endif %}",
    "{{ ''.__class__ }}", "{{ record.__init__.__globals__ }}", "{{ cycler.__init__ }}",
    "{{ self._TemplateReference__context }}", "{{ 1/0 }}", "{{ record|attr('__class__') }}",
    "{{ ''|attr('format')('x') }}", "{{ '{0.__class__}'.format(1) }}", "{{ ().__class__ }}",
    "{{ '%s'|format(record) }}", "{{ record.update(a=1) }}", "{{ range(10**9)|list }}",
    "{% macro a() %}{{ a() }}{% endmacro %}", "{{ a() }}", "{% include 'x' %}", "{% import 'os' as os %}",
    "{% extends 'y' %}", "{% block b %}", "{% set x = record %}", "{{ x.y.z() }}", "{{ namespace().a }}",
    "{{ lipsum.__globals__ }}", "{{ joiner.__class__ }}", "{{ dict(a=1).pop('a') }}", "{{ record|tojson }}",
    "{{ 'x'|int.bit_length() }}", "{{ title|unknown }}", "{{ 'abc'[5] }}", "{{ [][0] }}", "{% raw %}",
    "{{ [1, 'a']|sort }}",
    "{{ (1, 2)|sum(attribute='x') }}", "{{ 'x' * 5000 }}", "{{ date|default('s. d.') }}", "Describe ", "{{ title|e }}",
    "{# ", "{{ 9" + "9" * 5000 + " }}", "{{ " + "(" * 200 + "1" + ")" * 200 + " }}", "<b>", "\0", "\u202e",
    "{{ '\\ud800' }}", "{% filter upper %}", "{% call a() %}", "{% do x %}",
    "{% autoescape true %}", "{{ caller() }}",
)  # fmt: skip
RECORD = {"name": "Rue Saint-Antoine", "attributes_map": {"Date": "1932"}, "x": [1, {"a": None}]}

HEAVY = (
    "{{ 'a' * 10**10 }}", "{{ '%1000000000d' % 1 }}", "{{ 'x'.center(10**10) }}", "{{ [0] * 10**9 }}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
)  # fmt: skip
ENDLESS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}x", "{{ 7 ** (10 ** 9) }}",
    "{% macro a(n) %}{% for i in range(99) %}{{ a(n - 1) if n else '' }}{% endfor %}{% endmacro %}{{ a(99) }}",
)  # fmt: skip


def test_values(tally: Tally) -> None:
    """Whatever a record holds, its prompt is bounded plain text without markup, or the record is invalid."""
    feed_values(VALUES, tally, lambda _: None)


def test_templates(tally: Tally) -> None:
    """A template is refused when it is read, or it fails on a record, or gives a bounded prompt: nothing else."""
    feed_templates(TEMPLATES, tally)


@pytest.mark.parametrize("source", HEAVY[:2])
def test_heavy_templates(tmp_path: Path, source: str) -> None:
    """A template that takes all memory is refused before it is used."""
    assert_refused(tmp_path, source)


@pytest.mark.soak
def test_values_soak(tally: Tally) -> None:
    """The same with many more, each put to the tokeniser: one picture, and no other special token than the chat's."""
    # Not at the top: these import torch.
    from etl.caption.model.loading import load
    from etl.caption.tokens import PromptEncoder

    processor = load(Settings(model="demo", device="cpu", dtype="float32")).processor
    encoder = PromptEncoder(processor, 40, 1024)
    usual = encoder.encode("Describe.")
    special = set(processor.tokenizer.all_special_ids)

    def encode(prompt: str) -> None:
        try:
            encoded = encoder.encode(prompt)
        except CaptionError:
            return
        assert encoded.text.count("<image>") == 1
        assert [one for one in encoded.ids if one in special] == [one for one in usual.ids if one in special]

    feed_values(VALUES * SOAK_FACTOR, tally, encode)


@pytest.mark.soak
def test_templates_soak(tally: Tally) -> None:
    """The same with many more."""
    feed_templates(TEMPLATES * SOAK_FACTOR, tally)


@pytest.mark.soak
@pytest.mark.parametrize("source", (*HEAVY, *ENDLESS))
def test_heavy_templates_soak(tmp_path: Path, source: str) -> None:
    """The same for time: loops in loops, powers of powers."""
    assert_refused(tmp_path, source)


def feed_values(count: int, tally: Tally, use: Callable[[str], None]) -> None:
    with own_memory(tally):
        for kind, number, rng in inputs(VALUE_KINDS, count):
            record = {name: VALUE_KINDS[kind](rng) for name in rng.sample(FIELDS, rng.randint(1, 4))}
            with tally.trying(kind, number) as outcome:
                for one in record.values():
                    assert_plain(clean_field(one))
                    assert len(clean_field(one)) <= MAX_FIELD_CHARS
                for template in (USUAL, EVERYTHING):
                    try:
                        prompt = template.render(record)
                    except InvalidRecordError:
                        outcome[:] = ["invalid"]
                        continue
                    assert len(prompt) <= MAX_PROMPT_CHARS
                    assert_plain(prompt)
                    use(prompt)
                outcome[:] = outcome or ["prompt"]
    assert tally.memory < MEMORY


def assert_plain(prompt: str) -> None:
    """Nothing in the text is hidden, turns it, or could be a special token's bracket."""
    prompt.encode()
    assert "<" not in prompt and ">" not in prompt
    bad = [c for c in prompt if unicodedata.category(c) in HIDDEN or unicodedata.bidirectional(c) in TURNING]
    assert not bad and not set(prompt) & set("\u200b\u061c\ufeff\xad\U000e0041")


def feed_templates(count: int, tally: Tally) -> None:
    with own_memory(tally):
        for _, number, rng in inputs(("template",), count):
            source = "".join(rng.choices(FRAGMENTS, k=rng.choice((1, 1, 2, 4))))
            with tally.trying("template", number) as outcome:
                try:
                    prompt = PromptTemplate(source).render(RECORD)
                except (ConfigError, InvalidRecordError) as error:
                    assert str(error).isprintable() or "\n" not in str(error)
                    outcome.append(type(error).__name__)
                    continue
                assert prompt.strip() and len(prompt) <= MAX_PROMPT_CHARS
                # What Python shows of a class, a function or a module.
                assert "class \u2018" not in prompt and " at 0x" not in prompt and "__main__" not in prompt
                outcome.append("prompt")
    assert tally.memory < MEMORY


def assert_refused(directory: Path, source: str) -> None:
    file = directory / "prompt.j2"
    file.write_text(source, encoding="utf-8")
    with pytest.raises(ConfigError, match="too much time or memory"):
        PromptTemplate.from_file(file)
