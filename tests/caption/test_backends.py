"""The backends by name: each is complete, and one more is a module and its line."""

import sys
from types import ModuleType
from typing import Any, cast

import pytest

from etl.caption import backends, local
from etl.caption.backends import BACKENDS, Backend, check_model, open_captioner
from etl.errors import ModelError
from etl.images.cache import ImageCache
from etl.settings import Settings, values


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_every_backend_offers_what_is_asked_of_it(name: str) -> None:
    """Each name that the setting takes stands for a module with both functions, and no other name has a line."""
    module = backends.backend(Settings(backend=name))
    assert callable(module.check) and callable(module.open_backend)
    assert set(BACKENDS) == set(values.BACKENDS)


def test_one_more_backend_is_a_module_and_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the table names is asked, with the settings, the cache and the edge, and its complaints come through."""

    class Parrot(ModuleType):
        def check(self, settings: Settings) -> None:
            raise ModelError(f"no parrot for {settings.model}")

        def open_backend(self, *given: Any) -> Any:
            return given

    settings, cache = Settings(model="demo"), cast(ImageCache, object())
    object.__setattr__(settings, "backend", "parrot")
    monkeypatch.setitem(sys.modules, "parrot", Parrot("parrot"))
    monkeypatch.setitem(BACKENDS, "parrot", "parrot")
    assert cast(Any, open_captioner(settings, cache, 336)) == (settings, cache, 336)
    with pytest.raises(ModelError, match="no parrot for demo"):
        check_model(settings)


def test_modules_are_backends_for_the_type_checker_too() -> None:
    """What the protocol says is what the modules have."""
    from etl.caption.openai import captioner as openai
    from etl.caption.ray import captioner as ray
    from etl.caption.vllm import captioner as vllm

    found: list[Backend] = [local, openai, ray, vllm]
    assert {module.__name__ for module in cast("list[Any]", found)} == set(BACKENDS.values())
