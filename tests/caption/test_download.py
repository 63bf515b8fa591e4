"""How far the download of a model's weights is, from what huggingface_hub tells its bars."""

from etl.caption.model.download import counting
from etl.domain.views import Download


def test_only_the_bytes_on_the_disk_are_told() -> None:
    """The bar over all files tells bytes and their total, before the first as well; bars of files tell nothing."""
    told: list[Download] = []
    bars = counting(told.append)
    with bars(total=3, desc="Fetching 3 files") as files:
        files.update(1)
    sent = bars(total=0, name="huggingface_hub.snapshot_download.transfer", unit="B")
    sent.update(999)
    whole = bars(total=0, name="huggingface_hub.snapshot_download", unit="B", disable=False)
    whole.total = 100
    whole.refresh()
    whole.update(40)
    whole.update(70)
    assert [(now.done, now.total) for now in told] == [(0, 100), (40, 100), (110, 110)]
    assert told[0].bytes_per_s == 0 and told[2].bytes_per_s > 0
