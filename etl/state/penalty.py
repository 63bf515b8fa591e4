"""The repetition penalty by which captions are made again.  Apart, for commands that only look."""

from etl.domain.statuses import QualityFlag

PENALTY = 1.2
"""The usual repetition penalty; 1 is none.  What CTRL, which brought it in, found to balance truth and loops."""

HIGHEST_PENALTY = 2.0
"""Far beyond it a model avoids even its articles, and its sentences fall apart."""

LOWEST_PENALTY = 1.01
"""The smallest step that is kept as more than rounding."""

UNLIKELY: dict[str, str] = {
    QualityFlag.TRUNCATED: "unless the text goes round in a loop, the token limit is too low for it; a higher "
    "--max-new-tokens is another recipe, which captions every picture again",
    QualityFlag.EMPTY: "most empty captions end before their first word, and there no word is repeated",
    QualityFlag.REFUSAL: "what a model will not say depends on the picture and the prompt; another --prompt-template "
    "helps more",
    QualityFlag.RECOMPUTED: "nothing is wrong with these words; --dtype float32 or bfloat16 would avoid the overflow",
}
"""Why a repetition penalty hardly changes what the flag says.  It helps against the others: loops, and echoes, since
the words of the prompt are avoided too."""
