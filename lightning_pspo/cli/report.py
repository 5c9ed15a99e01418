"""Write one page about runs: ``lightning-pspo report RUN... --output report.html``.

RUN is the folder of a run. Runs whose settings differ only in the seed form one arm. The page is a single file that
needs no network; see docs/report.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Write the page and return the exit status."""
    options = parser().parse_args(arguments)

    from lightning_pspo.report import ReportError, write_report

    try:
        output = write_report(options.runs, options.output, options.title)
    except (ReportError, OSError) as error:
        from lightning_pspo.ledger.view import visible

        print(f"error: {visible(str(error))}", file=sys.stderr)
        return 2
    print(output)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser("lightning-pspo report", description="Write one self-contained page about runs.")
    result.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    result.add_argument("--output", type=Path, default=Path("report.html"), help="the page (default report.html)")
    result.add_argument("--title", help="title of the page")
    return result
