"""Captioners without a chat: models that know one task, or go on with the words that a caption begins with.

Their repositories have no chat template, and an instruction means nothing to them: each is asked in its own way, the
same for every picture.
"""

from typing import Any

from etl.errors import ModelError

PROMPTS = {
    "blip": "",
    "blip-2": "",
    "florence2": "<MORE_DETAILED_CAPTION>",
    "git": "",
    "kosmos-2": "Describe this image in detail:",
    "paligemma": "caption en",
}
"""What each family is asked where the user says nothing, by ``model_type``: a task of Florence-2's; else the words that
the caption follows, which may be none."""


def native_text(kind: str, processor: Any, prompt: str) -> str:
    """Return what the processor of a family of `PROMPTS` is given as text; ``prompt`` is the user's, or empty.

    Raises `ModelError` for a task that Florence-2 does not have.
    """
    prompt = prompt or PROMPTS[kind]
    if kind == "florence2":
        kinds = processor.tasks_answer_post_processing_type
        tasks = sorted(task for task in processor.task_prompts_without_inputs if kinds.get(task) == "pure_text")
        if prompt not in tasks:
            raise ModelError(f"Florence-2 is asked by task: --native-prompt must be one of {', '.join(tasks)}")
    if kind == "paligemma":
        return f"{processor.image_token}{prompt}"
    # Its caption follows the start token at once; the tokenizer would end the text behind that.
    return f"{processor.tokenizer.cls_token or ''}{prompt}" if kind == "git" else prompt


def native_inputs(kind: str, processor: Any, text: str, pictures: list[Any]) -> dict[str, Any]:
    """Return what ``generate()`` takes for pictures that are all asked the same, with tensors of torch."""
    plain = {"add_special_tokens": False} if kind == "git" else {}
    return dict(processor(images=pictures, text=[text] * len(pictures), return_tensors="pt", **plain))
