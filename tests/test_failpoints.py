"""Failpoints: how they are ordered, and that they cost and do nothing where nobody ordered any."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from etl import failpoints
from etl.errors import UsageError
from etl.failpoints import FAILPOINTS, Order, arm, parsed

SOURCES = Path(failpoints.__file__).parent


def in_process(code: str, orders: str) -> "subprocess.CompletedProcess[str]":
    """Run a little program with these orders in its environment."""
    return subprocess.run(
        [sys.executable, "-u", "-c", f"from etl.failpoints import failpoint; {code}"], text=True, capture_output=True,
        env=os.environ | {"ETL_FAILPOINTS": orders}, timeout=60, check=False,
    )  # fmt: skip


def test_orders_are_read() -> None:
    """Each names a failpoint, an action with its argument, and a passing or all from one on."""
    assert parsed("recover.committed=kill, cache.renamed=error:ENOSPC@3+,part.noted=sleep:0.5@2,") == {
        "recover.committed": Order("kill"),
        "cache.renamed": Order("error", "ENOSPC", 3, onwards=True),
        "part.noted": Order("sleep", "0.5", 2),
    }
    assert parsed("") == {}


@pytest.mark.parametrize(
    "text",
    [
        "cache.renamed", "cache.renamed=", "cache.renamed=die", "cache.renamed=kill:9", "cache.renamed=error",
        "cache.renamed=error:ENOTHING", "cache.renamed=sleep:long", "cache.renamed=sleep:-1", "cache.renamed=kill@0",
        "cache.renamed=kill@x", "cache.renamed=kill@", "cache.rename=kill",
    ],
)  # fmt: skip
def test_a_wrong_order_is_refused(text: str) -> None:
    """Its text is in the message."""
    with pytest.raises(UsageError, match=re.escape(text.partition("=")[0])):
        parsed(text)


def test_a_process_obeys_its_orders() -> None:
    """It fails at the second passing alone, or at all from then on; SIGKILL comes at the third."""
    attempt = "\ntry: failpoint('cache.renamed'); print('passed')\nexcept OSError as error: print(error.errno)"
    program = "import os" + attempt * 3
    number = str(errno.ENOSPC)
    assert in_process(program, "cache.renamed=error:ENOSPC@2").stdout.split() == ["passed", number, "passed"]
    assert in_process(program, "cache.renamed=error:ENOSPC@2+").stdout.split() == ["passed", number, number]
    killed = in_process(program, "cache.renamed=kill@3")
    assert (killed.returncode, killed.stdout) == (-9, "passed\npassed\n")
    wrong = in_process("", "cache.rename=kill")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1) and "no failpoint 'cache.rename'" in wrong.stderr
    unknown = in_process("failpoint('nowhere')", "cache.renamed=kill")
    assert "KeyError: 'nowhere'" in unknown.stderr


def test_nothing_is_ordered_by_default() -> None:
    """Without the variable it is a function that does nothing, and cannot be made to."""
    assert failpoints.failpoint is failpoints._unarmed
    with pytest.raises(RuntimeError, match="was not set"):
        arm("cache.renamed=kill")


def test_every_name_in_the_code_is_in_the_list() -> None:
    """Every failpoint and every named transaction is there, and the list names no other."""
    code = "\n".join(file.read_text(encoding="utf-8") for file in SOURCES.rglob("*.py") if file.name != "failpoints.py")
    commits = set(re.findall(r'transaction\("([a-z_.]+)"\)', code))
    for stage in ("fetch", "caption"):
        commits |= {f"{stage}.{name}" for name in re.findall(r'transaction\(f"\{self\.stage\}\.([a-z_]+)"\)', code)}
    # Nobody gives back single captions: a stage that ends gives back all that it holds.
    commits.remove("caption.release")
    steps = set(re.findall(r'failpoint\("([a-z_.]+)"\)', code))
    assert steps | {f"{name}.{side}" for name in commits for side in ("before_commit", "committed")} == set(FAILPOINTS)
    assert all(sentence.endswith(".") for sentence in FAILPOINTS.values())
