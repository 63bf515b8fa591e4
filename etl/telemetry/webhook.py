"""One message to a URL of the user's when a run has ended: chat rooms and other programs take it from there."""

import logging
import time
from typing import Any

import httpx

from etl.config import host_of

log = logging.getLogger(__name__)

TIMEOUT_S = 3.0
"""For one attempt."""

ATTEMPTS = 3

PAUSE_S = 0.5
"""Between two attempts.  All together they stay below the seconds that a spot machine has left after a stop."""


def send(url: str, message: dict[str, Any]) -> bool:
    """POST a message as JSON; tell whether it was taken.

    Never raises and is never tried for long: the work is done, and whoever waits for the program shall not wait for a
    chat room.  A redirect counts as a refusal, since what is sent may be meant for one place alone.
    """
    why = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S)
        try:
            answer = httpx.post(url, json=message, timeout=TIMEOUT_S, follow_redirects=False)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = type(error).__name__
            continue
        if answer.is_success:
            return True
        why = f"status {answer.status_code}"
        if not (answer.status_code == 429 or answer.status_code >= 500):
            break
    # The path of such a URL is often all that keeps strangers from posting.
    log.warning("the webhook at %s did not take the message: %s", host_of(url), why)
    return False
