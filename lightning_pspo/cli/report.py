"""Write one page about runs: ``lightning-pspo report RUN... --output report.html``.

RUN is the folder of a run. Runs whose settings differ only in the seed form one arm. The page is a single file that
needs no network; see docs/report.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_pspo.cli.failures import ends_in_one_line
from lightning_pspo.cli.help import own_parser


@ends_in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Write the page and return the exit status."""
    options = parser().parse_args(arguments)

    from lightning_pspo.report import write_report  # takes a while: only for good arguments

    print(write_report(options.runs, options.output, options.title))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = own_parser("report")
    result.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    result.add_argument("--output", type=Path, default=Path("report.html"), help="the page (default report.html)")
    result.add_argument("--title", help="title of the page")
    return result
