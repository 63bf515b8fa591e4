"""What a reasoning model writes before its caption, kept apart from it.  Pure."""

_PAIRS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|channel>", "<channel|>"),
)
"""What stands before and behind the reasoning: of most models, of some, of Mistral's, of Kimi and of Gemma 4."""

MARKS = tuple(mark for pair in _PAIRS for mark in pair)


def opens_thinking(prompt: str) -> bool:
    """Return whether a prompt leaves the model within its reasoning, whose beginning it then does not write."""
    return prompt.rstrip().endswith(tuple(opening for opening, _ in _PAIRS))


def split_thinking(text: str, *, opened: bool = False) -> tuple[str, str]:
    """Return the caption and the reasoning in a model's text, both stripped; either may be empty.

    ``opened`` is `opens_thinking` of the prompt.  Reasoning that does not end is all there is.
    """
    for opening, closing in _PAIRS:
        before, found, behind = text.rpartition(closing)
        if found:
            return _without(behind), _without(before)
        if text.lstrip().startswith(opening):
            return "", _without(text)
    return ("", text.strip()) if opened else (text.strip(), "")


def _without(text: str) -> str:
    for mark in MARKS:
        text = text.replace(mark, " ")
    return text.strip()
