"""What ``etl doctor`` looks at, in its order."""

from collections.abc import Iterator

from etl.run.checks import forecast, machine, model, network, room
from etl.run.checks.check import Check
from etl.settings import Settings


def checks(settings: Settings, *, gpu: bool = False, net: bool = False) -> Iterator[Check]:
    """Yield the findings, one by one as they are made.

    With ``gpu`` also what is tried on each GPU, with ``net`` also what hosts, hub and endpoints say to one request.
    """
    yield machine.python()
    yield machine.packages()
    yield machine.sqlite()
    yield room.disk(settings)
    yield machine.open_files(settings)
    yield machine.proxy()
    if net:
        yield from network.network(settings)
    yield from _captioning(settings, gpu=gpu, net=net)
    yield forecast.work(settings)


def _captioning(settings: Settings, *, gpu: bool, net: bool) -> Iterator[Check]:
    missing = model.libraries(settings)
    if settings.backend != "local":
        yield model.elsewhere(settings, net=net)
    if missing is not None:
        yield missing
        return
    device = model.device(settings)
    yield device
    if settings.backend == "local":
        yield model.weights(settings, net=net)
    if gpu and device.verdict != "fail":
        yield from model.trial(settings, forecast.records_to_do(settings))
