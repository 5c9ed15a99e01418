"""``lightning-pspo report``, for a checkout."""

from lightning_pspo.__main__ import script

script(__name__, __file__)
