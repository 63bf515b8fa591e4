"""What holds for every test: the collector looks only at what tests make."""

import gc


def pytest_collection_finish() -> None:
    """Set the imported modules aside: torch and its kin are half a million objects, a third of a second each time."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter take everything down as ever; what libraries see leaked at the end they complain of."""
    gc.unfreeze()
