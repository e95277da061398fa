"""The options of `flagtrl trade`."""

from __future__ import annotations

from flagtrl.options.words import Commands, add_command, path
from flagtrl.runs.others import KINDS


def trade(commands: Commands) -> None:
    """`flagtrl trade`, without the settings of data, windows, prompts and model."""
    command = add_command(
        commands,
        "trade",
        "trade a window with another policy: an untrained model, an endpoint, a file, numbers",
        "Trade an asset's windows with a policy that flagtrl did not train, beside the same "
        "controls, and write what a run's results have: results.json, days.parquet, report.html. "
        "Further options are those of `flagtrl train`: --recipe, --data, --model_name_or_path, "
        "--prompt_style, --cost_bps ... With --seed 0 --output_dir "
        "FOLDER/ASSET/NAME/seed-0 the tables of `flagtrl paper --output_dir FOLDER` have it as "
        "NAME.",
    )
    command.allow_abbrev = False
    command.add_argument(
        "--policy",
        required=True,
        choices=list(KINDS),
        help="; ".join(f"{name}: {about}" for name, about in KINDS.items()),
    )
    command.add_argument(
        "--recipe", metavar="NAME", help="msft, jnj, hon, uvv, tsla or btc (default: msft)"
    )
    command.add_argument(
        "--endpoint",
        metavar="URL",
        help="up to /v1, as http://localhost:8000/v1; the key is OPENAI_API_KEY's",
    )
    command.add_argument("--endpoint_model", metavar="NAME", help="as the endpoint calls it")
    command.add_argument(
        "--timeout_s", type=float, default=60.0, help="of one request (default: %(default)s)"
    )
    command.add_argument(
        "--max_tokens", type=int, default=512, help="of one answer (default: %(default)s)"
    )
    path(
        command, "--decisions", metavar="FILE", help="for every day of the test window but the last"
    )
    path(
        command,
        "--output_dir",
        directory=True,
        help="where to write (default: runs/trade-1, or the next number)",
    )
