"""Models that must be refused."""

from typing import Any

import pytest

from lightning_pspo.errors import InputError
from lightning_pspo.policy.pretrained import Pretrained


def refused(name: str, **settings: Any) -> str:
    """Return the line that refuses a model."""
    with pytest.raises(InputError) as caught:
        Pretrained(name=name, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert name in message
    return message
