"""Which texts beside pictures are this program's captions, so that what a person wrote or changed is left."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache, cached_property

from etl.export.lines import Joined
from etl.state.database import SPLIT_VERSION
from etl.state.read.exports import caption_surroundings, texts_of_others, texts_of_record
from etl.state.read.reader import Reader

Around = tuple[str, str]
"""What stands before and behind a caption."""

Form = Callable[[Around, str], bytes]
"""Returns what a file holds for what stands around a caption, and the caption."""

Wrote = Callable[[bytes, Form, Around], bool]
"""Returns whether what a file holds is a caption of this state in a form."""


class Written:
    """Knows what exports of a state may have written: a caption, with what stands around captions now or did before."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._others = cache(self._hashes_of_others)

    def holds(self, content: bytes, form: Form, around: Around, *, record: Joined, beside: bool) -> bool:
        """Return whether a file that is there for a record is such a caption.

        ``beside`` its picture it can be one of this or of what was under its name before.  In a folder of other names
        it can be any: which record has a name there depends on those before it.
        """
        # No earlier version wrote such files.
        if self._reader.version < SPLIT_VERSION:
            return False
        own = texts_of_record(self._reader, record.row.record)
        return content in self._contents(own, form, around) or hash(content) in self._others(form, around, not beside)

    @cached_property
    def _surroundings(self) -> list[Around]:
        return caption_surroundings(self._reader)

    def _contents(self, texts: Iterable[str], form: Form, around: Around) -> Iterator[bytes]:
        pairs = {around, ("", ""), *self._surroundings}
        return (form(pair, text) for text in texts for pair in pairs)

    def _hashes_of_others(self, form: Form, around: Around, everything: bool) -> frozenset[int]:
        texts = texts_of_others(self._reader, everything=everything)
        return frozenset(map(hash, self._contents(texts, form, around)))
