"""The commands that audit, as `cli.py` calls them."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path


def table(options: argparse.Namespace) -> None:
    """`flagtrl audit table`."""
    from rich.console import Console

    from flagtrl.files import write_json
    from flagtrl.places import check_output_file
    from flagtrl.runs.audit_table import answers_table, asked, audit, read_rows, sentences

    rows = read_rows(Path(options.file))
    questions = asked(rows, Path(options.data))
    if options.json:
        check_output_file(options.json)
    records = audit(questions, options.jobs, partial(print, flush=True))
    if options.json:
        write_json(options.json, records)
    print("\n".join(sentences(records)))
    Console(width=None if Console().is_terminal else 160).print(answers_table(records))
