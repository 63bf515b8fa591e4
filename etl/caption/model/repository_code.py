"""What to use instead of a model whose repository brings code of its own, which is never run."""

from typing import Any

MODEL_OF_TODAY = "Qwen/Qwen3-VL-8B-Instruct"
"""Named where nothing is nearer to what was asked for."""

_INSTEAD = {
    "chatglm": "zai-org/GLM-4.1V-9B-Thinking",
    "cogvlm": "zai-org/GLM-4.1V-9B-Thinking",
    "cogvlm2": "zai-org/GLM-4.1V-9B-Thinking",
    "florence2": "florence-community/Florence-2-large",
    "internvl_chat": "OpenGVLab/InternVL3_5-8B-HF",
    "llava_llama": "llava-hf/llava-1.5-7b-hf",
    "llava_mistral": "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava_qwen": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "minicpmo": "openbmb/MiniCPM-V-4.6",
    "minicpmv": "openbmb/MiniCPM-V-4.6",
    "molmo": "allenai/Molmo2-8B",
    "moondream1": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    "multi_modality": "deepseek-community/deepseek-vl-7b-chat",
    "ovis": "thisisiron/Ovis2-2B-hf",
    "qwen": MODEL_OF_TODAY,
}
"""By ``model_type``: the same weights in the form that transformers knows, or the nearest that there is."""


def instead_of(kind: Any) -> str:
    """Return the model to use instead of one of this ``model_type``."""
    return _INSTEAD.get(str(kind), MODEL_OF_TODAY)


def needs_own_code(raw: dict[str, Any], known: bool) -> bool:
    """Return whether the ``config.json`` asks for code of its repository; ``known`` is whether transformers has the
    kind.

    Some repositories bring code for a kind that has been in transformers since; only Florence-2's are written
    otherwise.
    """
    return "auto_map" in raw and (not known or raw.get("model_type") == "florence2")
