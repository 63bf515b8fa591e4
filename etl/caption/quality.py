"""Quality flags: what is suspicious about a caption's text.  Pure; a flag never changes or discards a caption."""

import re
from collections import Counter

from etl.domain.statuses import FinishReason, QualityFlag

ECHO, EMPTY, RECOMPUTED = QualityFlag.ECHO, QualityFlag.EMPTY, QualityFlag.RECOMPUTED
REFUSAL, REPETITION, TRUNCATED = QualityFlag.REFUSAL, QualityFlag.REPETITION, QualityFlag.TRUNCATED
THOUGHT_ONLY = QualityFlag.THOUGHT_ONLY

FLAGS = tuple(QualityFlag)

TOKENS_PER_CHARACTER = 4
"""More tokens than this for each character of text: the tokens were special ones, or were not decoded."""

SHINGLE = 6
"""Words in a row that a caption must share with its prompt to count as copied; titles are mostly shorter."""

COPIED_SHARE = 0.5
"""Share of a caption's words, copied from the prompt, above which it is an echo."""

GIVEN_BACK_SHARE = 0.8
"""Share of the prompt's words, found in the caption, above which it is an echo, whatever follows."""

LONGEST_UNIT = 80
"""Longest loop that is looked for, in words."""

RUN = 4
"""Words in a row whose second coming counts as repeated."""

FRESH_SHARE = 0.6
"""Share of different runs, among all of a text, under which it is a loop, though each round changes a word."""

LOOPABLE_WORDS = 40
"""Shorter texts may say of two things the same."""

OPENING_CHARS = 240
"""A refusal opens the text; what comes later may be about people in the picture."""

# A script without spaces counts by characters: one "word" per Han, kana or Hangul sign.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_CHARACTER_LOOP = re.compile(r"(\S{1,8}?)\1{11,}")
_SENTENCE_END = re.compile(r"[.!?\u2026\u3002]+\s*|\n+")
_QUOTED = re.compile(r'"[^"]*"|\u201c[^\u201d]*\u201d|\u00ab[^\u00bb]*\u00bb')
_ROLE = re.compile(r"\b(USER|ASSISTANT|HUMAN)\s*:|<image>|\[/?INST\]|<\|im_(start|end)\|>")
_REFUSAL = re.compile(
    r"""
    \b(i'm|i\s+am)\s+(very\s+|so\s+)?(sorry|unable|not\s+able)\b
    | \bi\s+apologi[sz]e\b
    | ^\W*sorry\b
    | \bi\s+(cannot|can't|can\s+not|could\s+not|couldn't|am\s+not\s+able\s+to|(do\s+not|don't)\s+have\s+the\s+ability)\b
    | \bi\s+(do\s+not|don't)\s+(actually\s+)?(see|have)\s+(any|an|the|access\s+to)\b
    | \bplease\s+(provide|upload|attach|share|send)\s+(me\s+)?(the|an?|your|another)\b
    | \bas\s+an?\s+(ai|artificial\s+intelligence|language\s+model|text-based)\b
    | \b(unable|impossible)\s+to\s+(see|view|access|process|analy[sz]e|describe)\s+(the|this|that|any|your)\b
    | \bno\s+(image|picture|photo(graph)?)\s+(was|is|has\s+been)?\s*(provided|attached|uploaded|given)\b
    | \b(image|picture|photo(graph)?)\s+(is|was|has)\s+not\s+(been\s+)?(provided|attached|uploaded|visible)\b
    | \bje\s+(suis|serais)\s+(vraiment\s+)?(d[ée]sol[ée]+|incapable)\b
    | ^\W*d[ée]sol[ée]+e?\b
    | \bje\s+(ne\s+)?(peux|puis|saurais|parviens)\s+(malheureusement\s+)?pas\b
    | \bje\s+ne\s+suis\s+pas\s+(en\s+mesure|capable)\b
    | \bil\s+m'est\s+impossible\b
    | \bje\s+ne\s+vois\s+(pas\s+d'|aucune\s+)(image|photo)
    | \bveuillez\s+(fournir|joindre|t[ée]l[ée]charger|envoyer)\b
    | \ben\s+tant\s+qu('|e\s+)(ia\b|intelligence\s+artificielle|mod[èe]le\s+de\s+langage|assistant)
    | \baucune\s+(image|photo(graphie)?)\s+n'\s*(a\s+[ée]t[ée]|est)\s+(fournie|jointe|t[ée]l[ée]charg[ée]e)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


def quality_flags(
    text: str, prompt: str, finish_reason: FinishReason, tokens: int, thinking: str = ""
) -> tuple[str, ...]:
    """Return the flags of one caption, sorted; empty when nothing is suspicious.

    ``prompt`` is the instruction text; ``tokens`` counts the generated tokens, the end-of-sequence token and those of
    the reasoning, ``thinking``, included.
    """
    words = [word.casefold() for word in _WORD.findall(text)]
    found = {
        TRUNCATED: finish_reason is FinishReason.LENGTH,
        EMPTY: not words or (len(text.strip()) + len(thinking)) * TOKENS_PER_CHARACTER < tokens,
        THOUGHT_ONLY: bool(thinking) and not words,
        REPETITION: _loops(words)
        or _repeats_sentences(text)
        or _goes_round(words)
        or bool(_CHARACTER_LOOP.search(text)),
        ECHO: _echoes(words, text, prompt),
        REFUSAL: bool(_REFUSAL.search(_QUOTED.sub(" ", text).replace("\u2019", "'")[:OPENING_CHARS])),
    }
    return tuple(sorted(flag for flag, present in found.items() if present))


def _repeats_needed(unit: int) -> int:
    """Return how often in a row a unit of so many words must come to be a loop ("very, very, very" is not)."""
    if unit == 1:
        return 5
    if unit <= 3:
        return 4
    return 3 if unit <= 7 else 2


def _loops(words: list[str]) -> bool:
    for unit in range(1, min(LONGEST_UNIT, (len(words) + 1) // 2) + 1):
        needed = unit * (_repeats_needed(unit) - 1)
        if unit > 7:
            needed -= 1  # a joining "and" stands in the first or the second copy only
        run = 0
        for index in range(len(words) - unit):
            run = run + 1 if words[index] == words[index + unit] else 0
            if run >= needed:
                return True
    return False


def _repeats_sentences(text: str) -> bool:
    """Whether one sentence of at least four words comes three times, in a row or not."""
    sentences = [tuple(word.casefold() for word in _WORD.findall(part)) for part in _SENTENCE_END.split(text)]
    counts = Counter(sentence for sentence in sentences if len(sentence) >= 4)
    return any(count >= 3 for count in counts.values())


def _goes_round(words: list[str]) -> bool:
    """Whether most runs of words have come before: a loop that counts, or swaps left and right, on every round."""
    runs = [tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)]
    return len(words) >= LOOPABLE_WORDS and len(set(runs)) / len(runs) < FRESH_SHARE


def _echoes(words: list[str], text: str, prompt: str) -> bool:
    if _ROLE.search(text):
        return True
    asked = [word.casefold() for word in _WORD.findall(prompt)]
    if len(asked) < SHINGLE:
        return bool(words) and words == asked
    return _share(words, asked) > COPIED_SHARE or _share(asked, words) > GIVEN_BACK_SHARE


def _share(words: list[str], source: list[str]) -> float:
    """Return the share of the words that stand in runs of `SHINGLE` words copied from the source."""
    shingles = {tuple(source[i : i + SHINGLE]) for i in range(len(source) - SHINGLE + 1)}
    copied = [False] * len(words)
    for i in range(len(words) - SHINGLE + 1):
        if tuple(words[i : i + SHINGLE]) in shingles:
            copied[i : i + SHINGLE] = [True] * SHINGLE
    return sum(copied) / len(words) if words else 0.0
