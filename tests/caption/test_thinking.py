"""Models that reason before they caption: told not to, and what they reason all the same kept apart."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_families import checkpoint

from etl.caption.model.loading import LoadedModel, load
from etl.caption.model.templates import arguments, with_arguments
from etl.caption.thinking import opens_thinking, split_thinking
from etl.caption.tokens import Detokenizer, PromptEncoder
from etl.domain.items import CaptionItem
from etl.errors import ConfigError
from etl.settings import Settings

MakeSettings = Callable[..., Settings]

ITEM = CaptionItem(1, "a" * 64, "Describe.")


@pytest.fixture(scope="session")
def reasoning(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a small checkpoint of a family that reasons."""
    root = tmp_path_factory.mktemp("reasoning")
    folders = {family: checkpoint(family, root) for family in ("qwen3_5", "qwen3_vl_thinking", "gemma4")}
    return folders.__getitem__


@pytest.mark.parametrize(
    ("text", "opened", "caption", "thinking"),
    [
        ("A ship.", False, "A ship.", ""),
        (" <think>\n\n</think>\n\nA ship. ", False, "A ship.", ""),
        ("<think>It floats.</think>A ship.", False, "A ship.", "It floats."),
        ("It floats.\n</think>\n\nA ship.", True, "A ship.", "It floats."),
        ("<think>One</think><think>Two</think> A ship.", False, "A ship.", "One  Two"),
        ("<think>It floats, and", False, "", "It floats, and"),
        ("It floats, and", True, "", "It floats, and"),
        ("It floats.</think>", True, "", "It floats."),
        ("\u25c1think\u25b7It floats.\u25c1/think\u25b7A ship.", False, "A ship.", "It floats."),
        ("<|channel>thought\nIt floats.<channel|>A ship.", False, "A ship.", "thought\nIt floats."),
        ("[THINK]It floats.[/THINK]A ship.", False, "A ship.", "It floats."),
        ("A sign says <think> in red.", False, "A sign says <think> in red.", ""),
        ("", False, "", ""),
    ],
)
def test_reasoning_is_kept_apart(text: str, opened: bool, caption: str, thinking: str) -> None:
    """Nothing of the reasoning is in the caption, whoever has written its first mark; without an end there is none."""
    assert split_thinking(text, opened=opened) == (caption, thinking)


def test_a_prompt_may_begin_the_reasoning() -> None:
    """What a chat ends with tells whether the model is within its reasoning already."""
    assert opens_thinking("assistant\n<think>\n")
    assert not opens_thinking("assistant\n<think>\n\n</think>\n\n")
    assert not opens_thinking("Say <think>. ASSISTANT:")


def result(loaded: LoadedModel, written: str) -> tuple[str, str, tuple[str, ...]]:
    """Return caption, reasoning and flags of what a model has written."""
    ids = loaded.processor.tokenizer(written, add_special_tokens=False)["input_ids"]
    found = Detokenizer(loaded).result(ITEM, [*ids, loaded.eos[0]])
    return found.text, found.thinking, found.flags


def test_templates_that_know_it_are_told_not_to_reason(
    reasoning: Callable[[str], Path], settings: MakeSettings, loaded: LoadedModel
) -> None:
    """Reasoning is off unless it is asked for; either is in the recipe, and models without it keep theirs."""
    folder = str(reasoning("qwen3_5"))
    usual, asked = settings(model=folder), settings(model=folder, chat_template_arg=("enable_thinking=true",))
    silent, thinking = load(usual), load(asked)
    ends = [PromptEncoder(one.processor, 1, None).encode("Describe.").text for one in (silent, thinking)]
    assert ends[0].endswith("<think>\n\n</think>\n\n") and ends[1].endswith("assistant\n<think>\n")
    recipes = [one.recipe(s, engine="generate") for one, s in ((silent, usual), (thinking, asked))]
    assert [r.generation["chat_template_arguments"] for r in recipes] == [
        {"enable_thinking": False}, {"enable_thinking": True},
    ]  # fmt: skip
    assert recipes[0].sha256 != recipes[1].sha256
    assert "chat_template_arguments" not in loaded.recipe(settings(), engine="slots").generation
    assert result(silent, "A ship.") == ("A ship.", "", ())
    assert result(thinking, "It floats.") == ("", "It floats.", ("empty", "thought_only"))


def test_what_a_model_reasons_all_the_same_is_no_caption(
    reasoning: Callable[[str], Path], settings: MakeSettings
) -> None:
    """Models whose chat always reasons, and such as mark it with special tokens, give the caption behind it."""
    always = load(settings(model=str(reasoning("qwen3_vl_thinking"))))
    assert result(always, "It floats.</think>\n\nA ship.") == ("A ship.", "It floats.", ())
    long = "It floats, it has sails and a flag. " * 20
    assert result(always, f"{long}</think>A")[2] == ()
    marked = load(settings(model=str(reasoning("gemma4"))))
    assert result(marked, "<|channel>thought\nIt floats.<channel|>A ship.") == ("A ship.", "thought\nIt floats.", ())


def test_arguments_are_written_into_the_template() -> None:
    """Words, numbers and truth reach a template as what they are, in its macros too."""
    import jinja2

    template = "{% macro x() %}{{ a is true }} {{ b + 1 }} {{ c }} {{ d is none }}{% endmacro %}{{ x() }}"
    given = arguments("m", template, ("a=true", "b=2", 'c=high "effort"', "d=null"))
    assert jinja2.Template(with_arguments(template, given)).render(messages=[]) == 'True 3 high "effort" True'
    assert with_arguments(template, arguments("m", template, ())) == template


@pytest.mark.parametrize("value", ["enable_thinking", "=1", "a b=1", "1a=1", "a="])
def test_what_is_no_argument_is_refused(value: str) -> None:
    """An argument has a name and a value."""
    with pytest.raises(ConfigError, match="must look like enable_thinking=false"):
        Settings(chat_template_arg=(value,))
