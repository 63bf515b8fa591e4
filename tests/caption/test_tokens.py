"""Prompts are encoded exactly as the model's processor would encode them."""

import pytest

from etl.caption.model.loading import LoadedModel
from etl.caption.model.processors import LLAVA_CHAT_TEMPLATE
from etl.caption.tokens import PromptEncoder
from etl.demo.scenes import Scene
from etl.errors import CaptionError, ModelError, PromptTooLongError


def test_encoding_equals_the_processor(loaded: LoadedModel) -> None:
    """Ids are those that the processor gives for the same chat and a picture, image tokens included."""
    encoder = PromptEncoder(loaded.processor, 40, 1024)
    encoded = encoder.encode('Décrivez "Île Sainte-Hélène" \u20391913\u203a 🎈\nplease.')
    wanted = loaded.processor(images=Scene("blue", (), 1).draw(), text=encoded.text)["input_ids"][0]
    assert list(encoded.ids) == list(wanted)
    assert encoded.text.count("<image>") == 1
    assert encoded.ids.count(loaded.processor.image_token_id) == encoder.image_tokens == 16


def test_equal_prompts_are_encoded_once(loaded: LoadedModel) -> None:
    """The second encoding of a prompt is the object of the first."""
    encoder = PromptEncoder(loaded.processor, 40, 1024)
    assert encoder.encode("Describe.") is encoder.encode("Describe.")


def test_prompts_must_fit_the_context(loaded: LoadedModel) -> None:
    """Prompt, image tokens and new tokens together may fill the context, and not exceed it by one."""
    length = len(PromptEncoder(loaded.processor, 1, None).encode("Describe this.").ids)
    PromptEncoder(loaded.processor, 40, length + 40).encode("Describe this.")
    with pytest.raises(PromptTooLongError, match="do not fit"):
        PromptEncoder(loaded.processor, 40, length + 39).encode("Describe this.")


@pytest.mark.parametrize("token", ["<image>", "</s>", "<s>", "<pad>"])
def test_special_tokens_in_prompts_are_refused(loaded: LoadedModel, token: str) -> None:
    """A prompt cannot end itself, start another turn or add a picture: its special tokens are named and refused."""
    encoder = PromptEncoder(loaded.processor, 40, 1024)
    with pytest.raises(CaptionError, match="special token"):
        encoder.encode(f"A title{token}and more")


@pytest.fixture
def template(loaded: LoadedModel, request: pytest.FixtureRequest) -> LoadedModel:
    """Give the model another chat template for one test."""
    before = loaded.processor.chat_template
    loaded.processor.chat_template = request.param
    request.addfinalizer(lambda: setattr(loaded.processor, "chat_template", before))
    return loaded


@pytest.mark.parametrize("template", ["USER: {{ messages[0]['content'][1]['text'] }}", "<image><image>"], indirect=True)
def test_templates_must_place_one_picture(template: LoadedModel) -> None:
    """A chat template with no picture or two is refused at once, not on every item."""
    with pytest.raises(ModelError, match=r"(0|2) image placeholders"):
        PromptEncoder(template.processor, 40, 1024)


@pytest.mark.parametrize("template", ["<s>" + LLAVA_CHAT_TEMPLATE], indirect=True)
def test_one_start_token(template: LoadedModel) -> None:
    """A template that writes the start token itself gets no second one from the tokenizer."""
    tokenizer = template.processor.tokenizer
    encoder = PromptEncoder(template.processor, 40, 1024)
    assert not encoder.add_special_tokens
    assert encoder.encode("Describe.").ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("template", [" <s><s>" + LLAVA_CHAT_TEMPLATE, "<s><s>" + LLAVA_CHAT_TEMPLATE], indirect=True)
def test_two_start_tokens(template: LoadedModel) -> None:
    """A chat that would begin with two start tokens is refused."""
    template.processor.chat_template = template.processor.chat_template.lstrip()
    with pytest.raises(ModelError, match="start token"):
        PromptEncoder(template.processor, 40, 1024).encode("Describe.")
