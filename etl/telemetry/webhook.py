"""One message to a URL of the user's when a run has ended: chat rooms and other programs take it from there."""

import logging
import socket
import time
from typing import Any

import httpx2

from etl.net.address_guard import is_loopback
from etl.redaction import host_of
from etl.settings import Settings
from etl.text import clean

log = logging.getLogger(__name__)

TIMEOUT_S = 3.0
"""For one attempt."""

ATTEMPTS = 3

PAUSE_S = 0.5
"""Between two attempts.  All together they stay below the seconds that a spot machine has left after a stop."""


def announce(settings: Settings, facts: dict[str, Any], text: str) -> None:
    """Tell the webhook of the settings that a run has ended: ``facts`` for programs, ``text`` for people."""
    line = clean(f"caption-etl on {socket.gethostname()}, {settings.state}: {text}", 1000)
    # Slack shows "text", Discord shows "content"; both leave the rest alone.
    message = {"event": "run_ended", "text": line, "content": line, "host": socket.gethostname(), **facts}
    # After a signal the machine may be gone in seconds.
    send(settings.webhook, message, attempts=1 if facts.get("signal") else ATTEMPTS)


def send(url: str, message: dict[str, Any], attempts: int = ATTEMPTS) -> bool:
    """POST a message as JSON; return whether it was taken.

    Never raises and is never tried for long: the work is done, and whoever waits for the program shall not wait for a
    chat room.  A redirect counts as a refusal, since what is sent may be meant for one place alone.
    """
    why = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(PAUSE_S)
        try:
            answer = httpx2.post(
                url,
                json=message,
                timeout=TIMEOUT_S,
                follow_redirects=False,
                # A proxy would ask itself, or be told what was to stay on this machine.
                trust_env=not is_loopback(host_of(url)),
            )
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            why = type(error).__name__
            continue
        if answer.is_success:
            log.info("the webhook at %s took the message", host_of(url))
            return True
        why = f"status {answer.status_code}"
        if not (answer.status_code == 429 or answer.status_code >= 500):
            break
    # The path of such a URL is often all that keeps strangers from posting.
    log.warning("the webhook at %s did not take the message: %s", host_of(url), why)
    return False
