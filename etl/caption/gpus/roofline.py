"""What a card can do at most for a LLaVA: bounds from the model's shapes, the captions' lengths and two ceilings.

Two bounds, in images per second.  *Serial*: vision, prefill and decoding one after the other, each at its own ceiling.
*Overlap*: all arithmetic and all memory traffic at once, so that only the larger of the two counts.  Neither knows
launch gaps, padding, attention's own arithmetic in decoding, or traffic that a perfect kernel would not have.
"""

from dataclasses import dataclass, replace
from typing import Any

GIB = 2**30

RESERVE = 4e9
"""Bytes of GPU memory that are kept for activations and workspaces when slots are counted."""

USABLE = 0.94
"""Share of a card's memory that a program can count on."""


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The sizes of a LLaVA that decide its work.

    Attributes:
        hidden, intermediate, layers: of the language model.
        heads, kv_heads, head_dim: of its attention.
        vocabulary: rows of the head.
        vision_hidden, vision_intermediate, vision_layers: of the vision tower; only layers whose output is used count.
        vision_tokens: patches and the class token.
        image_tokens: what one picture takes in the prompt.
        patch_values: values in one patch, three colours.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    vision_hidden: int
    vision_intermediate: int
    vision_layers: int
    vision_tokens: int
    image_tokens: int
    patch_values: int

    @classmethod
    def of(cls, config: Any) -> "Shapes":
        """Return the shapes of a transformers ``LlavaConfig`` with a CLIP vision tower."""
        text, vision = config.text_config, config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        layer = config.vision_feature_layer
        used = layer if layer >= 0 else vision.num_hidden_layers + 1 + layer
        return cls(
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            vocabulary=text.vocab_size,
            vision_hidden=vision.hidden_size,
            vision_intermediate=vision.intermediate_size,
            vision_layers=used,
            vision_tokens=patches + 1,
            image_tokens=patches,
            patch_values=3 * vision.patch_size**2,
        )

    @property
    def decoder_weights(self) -> int:
        """Weights of the language model's matrices, without embeddings and head."""
        attention = 2 * self.hidden * self.heads * self.head_dim + 2 * self.hidden * self.kv_heads * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_weights(self) -> int:
        """Weights of the head; the embedding has as many."""
        return self.vocabulary * self.hidden

    @property
    def vision_weights(self) -> int:
        """Weights of the vision tower's matrices, with one layer that is there but not used, and the projector's."""
        layer = 4 * self.vision_hidden**2 + 2 * self.vision_hidden * self.vision_intermediate
        return (self.vision_layers + 1) * layer + self.vision_hidden * self.hidden + self.hidden**2

    @property
    def kv_values(self) -> int:
        """Values that the cache keeps for one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def vision_flop(self) -> float:
        """Return the arithmetic of the vision tower and the projector for one picture."""
        tokens, width = self.vision_tokens, self.vision_hidden
        matrices = 2 * tokens * (4 * width * width + 2 * width * self.vision_intermediate)
        tower = self.vision_layers * (matrices + 4 * tokens * tokens * width)
        patches = 2 * self.image_tokens * self.patch_values * width
        return tower + patches + self.image_tokens * 2 * (width * self.hidden + self.hidden**2)

    def prefill_flop(self, tokens: float) -> float:
        """Return the arithmetic of a prompt with so many tokens, picture included; the head is asked once."""
        attention = self.layers * 4 * tokens * tokens * self.heads * self.head_dim / 2
        return 2 * self.decoder_weights * tokens + attention + 2 * self.head_weights

    def token_flop(self) -> float:
        """Return the arithmetic of one decoded token's matrix products."""
        return 2.0 * (self.decoder_weights + self.head_weights)


@dataclass(frozen=True)
class Ceilings:
    """What the card reaches.

    Attributes:
        flops: arithmetic of a large matrix product, per second.
        bandwidth: bytes read and written per second by a copy on the device.
        memory: bytes of the card.
    """

    flops: float
    bandwidth: float
    memory: float


@dataclass(frozen=True)
class Load:
    """What is asked of the card.

    Attributes:
        prompt: mean tokens of a prompt, picture included.
        caption: mean tokens of a caption.
        slots: captions written at once; 0 for as many as the memory holds.
        weight_bytes, kv_bytes: of one weight, of one value in the cache.
    """

    prompt: float
    caption: float
    slots: int = 0
    weight_bytes: int = 2
    kv_bytes: int = 2


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The bounds, and what they are made of.

    Attributes:
        slots: captions written at once.
        vision_s, prefill_s, decode_s: seconds for one picture, the step shared by all slots.
        step_s: seconds of one decode step over all slots.
        serial, overlap: images per second.
    """

    slots: int
    vision_s: float
    prefill_s: float
    decode_s: float
    step_s: float
    serial: float
    overlap: float


def slots_in_memory(shapes: Shapes, load: Load, memory: float) -> int:
    """Return how many captions' caches fit beside the weights; at least 1."""
    weights = (shapes.decoder_weights + shapes.head_weights) * load.weight_bytes
    # Embedding, vision tower and projector stay in 16 bits when the matrices are made smaller.
    others = 2 * (shapes.vision_weights + shapes.head_weights)
    one = shapes.kv_values * load.kv_bytes * (load.prompt + load.caption)
    return max(1, int((memory * USABLE - weights - others - RESERVE) // one))


def bounds(shapes: Shapes, ceilings: Ceilings, load: Load) -> Bounds:
    """Return what the card could reach at most under this load."""
    if not load.slots:
        load = replace(load, slots=slots_in_memory(shapes, load, ceilings.memory))
    weights = (shapes.decoder_weights + shapes.head_weights) * load.weight_bytes
    context = shapes.kv_values * load.kv_bytes * (load.prompt + load.caption / 2)
    vision_s = shapes.vision_flop() / ceilings.flops
    prefill_s = shapes.prefill_flop(load.prompt) / ceilings.flops
    matrices_s = max(weights / ceilings.bandwidth, shapes.token_flop() * load.slots / ceilings.flops)
    step_s = matrices_s + load.slots * context / ceilings.bandwidth
    decode_s = load.caption * step_s / load.slots
    arithmetic_s = vision_s + prefill_s + load.caption * shapes.token_flop() / ceilings.flops
    traffic_s = load.caption * (weights / load.slots + context) / ceilings.bandwidth
    return Bounds(
        slots=load.slots,
        vision_s=vision_s,
        prefill_s=prefill_s,
        decode_s=decode_s,
        step_s=step_s,
        serial=1 / (vision_s + prefill_s + decode_s),
        overlap=1 / max(arithmetic_s, traffic_s),
    )
