"""Quality flags are raised for what is wrong, and for nothing else."""

import time

import pytest

from etl.caption.quality import ECHO, EMPTY, REFUSAL, REPETITION, TRUNCATED, quality_flags
from etl.domain.statuses import FinishReason
from etl.ingest.prompts import PromptTemplate

PROMPT = PromptTemplate().render({"name": "Chasse-neige tiré par un cheval", "attributes_map": {"Date": "1913"}})

GOOD = [
    "A horse pulls a wooden snow plough along a street. A man in a dark coat walks beside it, and a second man in a "
    "dark coat stands at the kerb. Brick houses line the street.",
    "A very, very, very tall chimney rises above the roofs.",
    "The photograph, titled “Chasse-neige tiré par un cheval”, shows a horse and a plough in 1913.",
    "Rows of houses, rows of trees and rows of carts fill the square. The houses are of brick. The trees are bare. "
    "The carts are empty. In the background, a church; in the foreground, a fountain.",
    "Un homme se tient à gauche de la voiture. Un homme se tient à droite de la voiture. Il neige.",
    "A sign in the window reads “I'm sorry, we are closed”. A woman cannot be seen behind it.",
    "No image of the king hangs on the wall. The clerks are unable to leave their desks.",
    "A ticket numbered 1000000 and dated 12.12.1912 lies on a table.",
    "一匹の馬が雪道で除雪機を引いている。男がそばを歩いている。",
    "Houses.",
    "Please note the sign: a man has provided an image of the king, and the clerk is sorry to see it go.",
    "I don't see why one would, says a poster; under it a man sends a letter.",
    "The photograph shows three men. The first man, at the left, wears a dark coat and a hat. The second man, in the "
    "middle, wears a light coat and holds a cane. The third man, at the right, wears a dark coat and looks away. "
    "Behind them a row of brick houses lines the street, and a horse stands before a cart. The sky is grey.",
    "Two shapes on a white background. A small red circle at the top left and a small red circle at the top right.",
]

BAD = {
    REPETITION: [
        "A man stands in the street. " * 5,
        "the " * 12,
        "A street with a horse and a horse and a horse and a horse and a horse.",
        "There are two people in the foreground of the image, and there are two people in the foreground of the image.",
        "A house stands by the road. Trees grow. A house stands by the road. Snow lies. A house stands by the road.",
        " ".join(f"Man {n} from the left is wearing a dark hat, and {n} looks at the street." for n in range(2, 9)),
        (" ".join(f"word{n}" for n in range(60)) + ". ") * 2,
        "馬がいる。" * 8,
        "hahahahahahahahahahahahahahahaha",
        "A view!!!!!!!!!!!!!!!!!!!!",
    ],
    ECHO: [
        PROMPT,
        PROMPT.upper() + " A horse.",
        "Describe it in two to three specific sentences: the subject, the visible details and the setting.",
        "A horse in the snow. USER: What else? ASSISTANT: A man.",
        f"{PROMPT} A horse pulls a wooden snow plough along a street. A man in a dark coat walks beside it, and a "
        "second man in a coat stands at the kerb. Brick houses line the street, and snow lies on their roofs.",
    ],
    REFUSAL: [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, I am unable to see the picture.",
        "As an AI language model, I do not look at pictures.",
        "I cannot describe people in photographs.",
        "Unfortunately, no image was provided.",
        "Sorry, but there is nothing to describe.",
        "I don't see any image in your message.",
        "The photograph was not provided. Please upload the picture again.",
        "Je ne vois pas d\u2019image. Veuillez fournir une photo.",
        "Je suis désolée, mais je ne peux pas décrire cette image.",
        "Désolé, aucune image n'a été fournie.",
        "En tant qu\u2019intelligence artificielle, il m\u2019est impossible de voir.",
        "Je ne suis pas en mesure d'identifier les personnes.",
    ],
    EMPTY: ["", "  \n", "...", "。", "--"],
}


@pytest.mark.parametrize("text", GOOD)
def test_good_captions_have_no_flags(text: str) -> None:
    """Ordinary captions are left alone, natural repetitions, quoted words and a quoted title among them."""
    assert quality_flags(text, PROMPT, FinishReason.STOP, 12) == ()


@pytest.mark.parametrize(("flag", "text"), [(flag, text) for flag, texts in BAD.items() for text in texts])
def test_bad_captions_are_flagged(flag: str, text: str) -> None:
    """Loops, echoes of the prompt, refusals and empty texts get their flag."""
    assert flag in quality_flags(text, PROMPT, FinishReason.STOP, 12)


def test_a_short_prompt_given_back_is_an_echo() -> None:
    """A prompt too short for a run of six words is recognised whole, and only then."""
    assert quality_flags("What is it?", "What is it?", FinishReason.STOP, 5) == (ECHO,)
    assert quality_flags("It is a horse.", "What is it?", FinishReason.STOP, 5) == ()


def test_truncated() -> None:
    """The token limit is flagged; flags are sorted."""
    assert quality_flags("A horse", PROMPT, FinishReason.LENGTH, 12) == (TRUNCATED,)
    assert quality_flags("", PROMPT, FinishReason.LENGTH, 12) == (EMPTY, TRUNCATED)


def test_tokens_without_text_are_empty() -> None:
    """A caption of which hardly anything could be shown is flagged, although a letter is left."""
    assert quality_flags("A", PROMPT, FinishReason.STOP, 150) == (EMPTY,)


def test_long_texts_are_quick() -> None:
    """The longest caption there can be, made to be slow, takes less than half a second."""
    nasty = "ab abc abcd " * 1500 + '"' * 2000 + "a" * 3000
    started = time.perf_counter()
    quality_flags(nasty, PROMPT * 10, FinishReason.LENGTH, 4096)
    words = " ".join(f"w{number % 997}" for number in range(4000))
    quality_flags(words, words, FinishReason.LENGTH, 4096)
    assert time.perf_counter() - started < 0.5
