"""Train on Microsoft, push the run, compare base and adapter in financial QA, and put the table
into the model card.

    flagtrl qa prepare tatqa hub --data qa_data
    python recipes/train_then_qa.py --repo_id OWNER/NAME --qa_tasks tatqa --qa_data qa_data

All other options are train_msft.py's. Without --repo_id nothing is pushed: table, picture and card
stay in output_dir.
"""

import argparse
from pathlib import Path

from accelerate import PartialState

from flagtrl.card import CARD_FILE, model_card
from flagtrl.errors import ConfigError
from flagtrl.hub import push
from flagtrl.program import one_line_errors
from flagtrl.qa.evaluate import load_tasks
from flagtrl.qa.report import write
from flagtrl.qa.run import Comparison, run
from flagtrl.runs.parsing import parse_arguments
from flagtrl.train import run_recipe


def main() -> None:
    """Check what can be checked first: hours of training stand between a wrong name and its
    error.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--repo_id")
    parser.add_argument("--qa_tasks", default="tatqa,finqa")
    parser.add_argument("--qa_data", default="qa_data")
    parser.add_argument("--qa_limit", type=int)
    options, rest = parser.parse_known_args()
    tasks = tuple(options.qa_tasks.split(","))
    if (many := PartialState().num_processes) > 1:
        raise ConfigError(
            f"{many} processes were started, the comparison needs one: start one, or use `flagtrl "
            "qa` later"
        )
    load_tasks(tasks, options.qa_data)
    out = Path(str(parse_arguments({}, rest).ppo.output_dir))
    run_recipe("msft", rest)
    if options.repo_id:
        print(f"pushed: {push(out, options.repo_id)}")
    rows, notes = run(Comparison((str(out),), tasks, options.qa_data, limit=options.qa_limit))
    write(out, rows, notes)
    (out / CARD_FILE).write_text(model_card(out, options.repo_id or out.name), encoding="utf-8")
    if options.repo_id:
        print(f"card with the comparison: {push(out, options.repo_id)}")


if __name__ == "__main__":
    with one_line_errors():
        main()
