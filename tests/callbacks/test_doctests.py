"""The examples in callbacks' docstrings. Pytest's own collection would import the folder a second time, by its path."""

import doctest
import importlib
import pkgutil

import lightning_pspo.callbacks
import pytest

MODULES = [module.name for module in pkgutil.iter_modules(lightning_pspo.callbacks.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name: str) -> None:
    assert not doctest.testmod(importlib.import_module(f"lightning_pspo.callbacks.{name}")).failed
