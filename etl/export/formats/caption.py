"""Text files whose names end in ``.caption``, as kohya's scripts look for them unless they are told otherwise."""

from etl.export.formats.txt import Txt


class Caption(Txt):
    """``NAME.caption`` for each captioned record."""

    name = "caption"
    help = "as `txt`, the files being `NAME.caption`"
    shard_suffix = ".caption"


FORMAT = Caption
