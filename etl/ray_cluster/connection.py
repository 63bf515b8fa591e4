"""Joining a Ray cluster: who may, and one connection for all stages of a run."""

import contextlib
import importlib.util
import logging
import os
import threading
from collections.abc import Mapping
from typing import Any

from etl.errors import ClusterError, ConfigError
from etl.extras import install_extra

log = logging.getLogger(__name__)

_lock = threading.Lock()
_users = 0


def joined(address: str, option: str, *, insecure: bool) -> Any:
    """Return the module ``ray``, connected to the cluster at ``address``; each call wants one `leave`.

    ``option`` is what asked for it, such as ``--backend ray``.

    Raises `ConfigError` as `check` does, and `ClusterError` where the cluster cannot be reached.
    """
    global _users
    check(address, option, insecure=insecure)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    # The name of a module that is not imported with its package.
    import ray.util.scheduling_strategies

    _quieten(ray)
    with _lock:
        try:
            ray.init(
                address=address,
                namespace="caption-etl",
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.ERROR,
                ignore_reinit_error=True,
            )
        except (ConnectionError, TimeoutError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ClusterError(
                f"the Ray cluster at {address} cannot be joined: {str(error).splitlines()[0][:300]}"
            ) from error
        _users += 1
    return ray


def _quieten(ray: Any) -> None:
    """Keep what Ray prints off stdout, which belongs to what a command answers.

    There is no setting for that: it prints what raylets report, such as a lost node.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    worker = ray._private.worker
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = _log_report


def _log_report(data: Mapping[str, Any], **_: Any) -> None:
    for line in data.get("lines", ()):
        log.info("Ray reports: %s", line)


def leave(ray: Any) -> None:
    """Leave the cluster, if nobody else of this process still works with it."""
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            with contextlib.suppress(Exception):
                ray.shutdown()


def check(address: str, option: str, *, insecure: bool) -> None:
    """Raise `ConfigError` where Ray is missing, the address is none, or anybody may command the cluster."""
    if not address:
        raise ConfigError(f"{option} needs --ray-address, such as 10.0.0.1:6379, or auto on a node of the cluster")
    if "://" in address:
        raise ConfigError(
            f"ray_address = {address!r}: Ray's client is not supported; run this on a node of the "
            "cluster, with host:port or auto"
        )
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(f"{option} needs Ray, on every node: {install_extra('ray')}")
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" and not insecure:
        raise ConfigError(
            "whoever reaches a Ray cluster without tokens can run any program on it: start every node and this command "
            "with RAY_AUTH_MODE=token and the same token (`ray get-auth-token --generate`), or say --insecure"
        )
