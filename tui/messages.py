"""What threads tell the app; they never touch a widget."""

from textual.message import Message

from tui.snapshot import Snapshot


class SnapshotTaken(Message):
    """The state looks different from before."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self.snapshot = snapshot

    def can_replace(self, message: Message) -> bool:
        """Only the latest snapshot is worth drawing."""
        return isinstance(message, SnapshotTaken)


class ReadingBroke(Message):
    """A reading thread met an error that nobody foresaw; the app ends with its traceback."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class CommandAnswered(Message):
    """A command was answered, or could not be delivered.

    Attributes:
        name: the command, as `etl.state.commands` names it.
        answer: what the run said; ``None`` when it did not answer in time.
        problem: why the command could not be delivered.
    """

    def __init__(self, name: str, answer: str | None = None, problem: str | None = None) -> None:
        super().__init__()
        self.name = name
        self.answer = answer
        self.problem = problem
