"""The commands that audit, as `cli.py` calls them."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path


def audit_run(options: argparse.Namespace) -> None:
    """`flagtrl audit run`."""
    from flagtrl.market.data import parse_date
    from flagtrl.places import check_output_dir, run_directory

    local = run_directory(options.run)
    out = check_output_dir(options.output_dir or str(local or "runs"))
    if options.knowledge_cutoff is not None:
        parse_date(options.knowledge_cutoff)

    from flagtrl.commands_evidence import loading_of
    from flagtrl.cpu import cpu_tuning
    from flagtrl.evidence.page import AUDIT_FILE, RESULTS, write_report
    from flagtrl.hub import local_or_pulled
    from flagtrl.runs.audit import audit
    from flagtrl.runs.directory import numbered
    from flagtrl.runs.replay import load_saved

    cpu_tuning()
    loaded = load_saved(local_or_pulled(options.run, options.revision), **loading_of(options))
    found = audit(loaded, options.knowledge_cutoff, partial(print, flush=True))
    other = any(each is not None for each in (options.data, options.start, options.end))
    if options.output_dir is None and (local is None or other):  # not what the run's results are of
        out = Path(numbered("runs/audit"))
    found.write(out)
    found.print()
    written = [AUDIT_FILE]
    if (out / RESULTS).is_file():
        write_report([str(out)])
        written.append("report.html")
    print(f"{' and '.join(written)}: {out}")


def audit_table(options: argparse.Namespace) -> None:
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
