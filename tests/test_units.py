"""Sizes, counts and durations: what people may write, what is refused and how, and that nothing set is rounded."""

import pytest

from etl.units import BYTES, BYTES_PER_S, SECONDS, count, duration, parse, rate, size, understood, written


@pytest.mark.parametrize(
    ("text", "unit", "number"),
    [
        ("20GB", BYTES, 20 * 10**9), ("512MiB", BYTES, 2**29), ("512mib", BYTES, 2**29),
        ("20000000", BYTES, 20_000_000), ("1.5 TB", BYTES, 1_500_000_000_000), ("2G", BYTES, 2 * 10**9),
        ("7B", BYTES, 7), ("1kB", BYTES, 1000), ("9007199254740993", BYTES, 2**53 + 1), ("4KiB/s", BYTES_PER_S, 4096),
        ("4096", BYTES_PER_S, 4096), ("10k", "", 10_000), ("1M", "pixels", 1_000_000), ("14,822", "", 14_822),
        ("1_000", "", 1000), ("1.5k", "", 1500), ("-3", "", -3), (" 800 ", "", 800), ("90m", SECONDS, 5400),
        ("1h30m", SECONDS, 5400), ("45s", SECONDS, 45), ("45", SECONDS, 45), ("1.5h", SECONDS, 5400),
        ("500ms", SECONDS, 0.5), ("2d", SECONDS, 172_800), ("2 h 3 min", SECONDS, 7380), ("1h 07m", SECONDS, 4020),
        ("90 Minutes", SECONDS, 5400), ("1e3", SECONDS, 1000),
    ],
)  # fmt: skip
def test_what_is_understood(text: str, unit: str, number: float) -> None:
    """Each way to write a number gives that number, bytes and pieces as whole ones."""
    found = parse(text, unit)
    assert (found, type(found)) == (number, float if unit == SECONDS else int)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("20GBB", BYTES), ("1.5B", BYTES), ("1h", BYTES), ("", BYTES), ("GB", BYTES), ("1,5", ""), ("1.0001k", ""),
        ("0x10", ""), ("1GB", ""), ("\u0663", ""), ("9" * 5000, ""), ("30m1h", SECONDS), ("1h1h", SECONDS),
        ("90x", SECONDS), ("m", SECONDS), ("1 month", SECONDS), ("1dins", SECONDS), ("1,5", SECONDS),
    ],
)  # fmt: skip
def test_what_is_not(text: str, unit: str) -> None:
    """Everything else is refused with what is understood."""
    with pytest.raises(ValueError, match="such as") as caught:
        parse(text, unit)
    assert str(caught.value) == f"give {understood(unit)}"


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (2**29, BYTES, "512MiB"), (4096, BYTES_PER_S, "4KiB/s"), (10**12, BYTES, "1TB"), (0, BYTES, "0"),
        (123, BYTES, "123B"), (2**53 + 1, BYTES, "9007199254740993B"), (400_000_000, "pixels", "400M"),
        (1024, "", "1024"), (65_535, "", "65,535"), (20_000, "", "20k"), (1_000_000, "", "1M"), (0.92, "", "0.92"),
        (900, SECONDS, "15m"), (5400, SECONDS, "1h30m"), (604_800, SECONDS, "7d"), (0.05, SECONDS, "50ms"),
        (1.5, SECONDS, "1.5s"), (0, SECONDS, "0"),
    ],
)  # fmt: skip
def test_what_was_set_is_written_whole(number: float, unit: str, text: str) -> None:
    """A default or a limit is written in its largest whole units, and read as the same number again."""
    assert written(number, unit) == text
    assert number == 0.92 or parse(text, unit) == number


def test_what_was_measured_stays_short() -> None:
    """A size or duration of any magnitude fits its column in the dashboard."""
    assert [size(n) for n in (0, 1536, 15 * 2**30, 2**53)] == ["0 B", "1.5 KiB", "15.0 GiB", "8,192.0 TiB"]
    assert [duration(s) for s in (-1, 59.9, 125, 4020, 273_600)] == ["0s", "59s", "2m 05s", "1h 07m", "3d 4h"]


@pytest.mark.parametrize(
    ("per_s", "said"), [(12.34, "12.3 captions/s"), (0.1, "0.1 captions/s"), (0.03, "1.8 captions/min")]
)
def test_a_slow_rate_is_told_by_the_minute(per_s: float, said: str) -> None:
    """It would else be 0.0."""
    assert rate(per_s, "captions") == said


def test_one_thing_is_told_as_one() -> None:
    """A number of things has its plural, an irregular one where that is given."""
    assert [count(n, "picture") for n in (0, 1, 2000)] == ["0 pictures", "1 picture", "2,000 pictures"]
    assert [count(n, "working copy", "working copies") for n in (1, 2)] == ["1 working copy", "2 working copies"]
