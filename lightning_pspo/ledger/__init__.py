"""The rollout ledger: every training completion once, on disk as Parquet. Imports no torch.

`LedgerWriter` writes a rank's rows and `Ledger` reads those of all ranks. The modules `compare`, `regrade`, `export`
and `view` are what ``lightning-pspo ledger`` does with them.
"""

from lightning_pspo.ledger.columns import FOLDER, schema
from lightning_pspo.ledger.reader import Ledger, find_ledger
from lightning_pspo.ledger.writer import LedgerWriter

__all__ = ["FOLDER", "Ledger", "LedgerWriter", "find_ledger", "schema"]
