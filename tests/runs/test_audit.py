"""`flagtrl audit RUN`, on a short run of a small model."""

import json
import shutil

import pytest

from flagtrl import cli
from flagtrl.errors import AdapterError
from flagtrl.evidence.counterfactuals import changes
from flagtrl.evidence.page import page
from flagtrl.options import parse
from flagtrl.options.auditing import written_out
from short_runs import FAST, ROOT, run_recipe

WINDOWS = [
    *("--train_start", "2020-07-01", "--train_end", "2020-08-14"),
    *("--test_start", "2020-10-01", "--test_end", "2020-11-20"),
]


@pytest.fixture(scope="module")
def trained(small_model, tmp_path_factory):
    """A run's directory."""
    from flagtrl.runs.parsing import parse_arguments
    from flagtrl.runs.recipes import RECIPES
    from flagtrl.runs.run import run

    out = tmp_path_factory.mktemp("runs") / "run"
    words = [*FAST, *WINDOWS, "--model_name_or_path", str(small_model), "--output_dir", str(out)]
    run(parse_arguments(RECIPES["msft"], words, "msft"))
    return out


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def audited(run, *words):
    cli.main(["audit", str(run), *map(str, words)])
    return json.loads((run / "audit.json").read_text())


def test_a_run_is_audited_and_its_page_says_so(copy, capsys):
    found = audited(copy, "--knowledge_cutoff", "2020-10-26")
    assert found["window"] == ["2020-10-01", "2020-11-20", 37]
    assert found["leaks"] == [] and found["tested_days"] == 36
    assert found["verdict"][0].startswith("No leak was found: on 36 days")
    assert {"news removed", "news negated", "price moves shuffled", "ticker masked"} <= set(
        found["counterfactuals"]
    )
    still = found["counterfactuals"]["prices rescaled"]  # `markov` prompts show moves alone
    assert (still["changed"], still["total_variation"]) == (0, 0)
    own = json.loads((copy / "results.json").read_text())["test"]["agent_greedy"]["standard"]
    assert still["CR"] == pytest.approx(own["CR"])
    free = {name: rows[0] for name, rows in found["costs"].items()}
    assert free["next_price"]["CR"] == pytest.approx(own["CR"])
    assert [each["bps"] for each in found["costs"]["same_price"]] == [0, 5, 10, 25]
    sides = found["knowledge_cutoff"]
    assert sides["before"]["bars"] == 18 and sides["after"]["bars"] == 19
    assert any("at least 20 are needed" in said for said in found["verdict"])
    card = {each["name"]: (each["here"], each["tested"]) for each in found["assumptions"]}
    assert card["the base model has read"] == ("up to 2020-10-26", "not tested")
    assert card["the market is not seen ahead"] == ("no stage knows later bars", "changed futures")
    assert card["windows"][0] == "trained to 2020-08-14, traded from 2020-10-01"
    assert {each["name"] for each in found["assumptions"]} >= {"orders fill", "a trade costs"}
    said = capsys.readouterr().out
    assert "No leak was found" in said and "audit.json and report.html" in said
    text = (copy / "report.html").read_text(encoding="utf-8")
    assert "Leaks, and what it reads" in text and "news negated" in text


AHEAD = """
from flagtrl.language.prompt import Prompt
from flagtrl.market.embedded import embedded

MARKET = embedded("MSFT")


def told(observation, headlines):
    target = MARKET.prices[min(observation.bar + 1, len(MARKET) - 1)]
    return Prompt(f"Target {target:.2f}.\\n", "long\\n" if observation.shares > 0 else "flat\\n")
"""
DATED = AHEAD.replace("Target {target:.2f}.", "Day {observation.date}.")


@pytest.mark.slow
@pytest.mark.parametrize("code", [AHEAD, DATED], ids=["the next price", "the date"])
def test_a_run_with_prompts_of_ones_own_is_caught_where_they_know_the_future(
    code, small_model, tmp_path, monkeypatch
):
    (tmp_path / "mine.py").write_text(code)
    spec, out = f"{tmp_path / 'mine.py'}:told", tmp_path / "run"
    options = ["--model_name_or_path", small_model, "--output_dir", out, "--prompt_style", spec]
    run_recipe(monkeypatch, "msft", *FAST, *WINDOWS, *options)
    found = audited(out, "--prompt_style", spec)
    if code == AHEAD:
        (leak, *_) = found["leaks"]
        assert (leak["stage"], leak["reads"]) == ("prompt", "the next bar's price")
        assert "the next bar's price" in found["verdict"][0]
    else:
        assert found["leaks"] == [] and found["counterfactuals"]["dates masked"]["total_variation"]
        reads = found["counterfactuals"]["price moves shuffled"]["total_variation"]
        assert reads == 0, "the prompt shows no price"


@pytest.mark.slow
def test_a_policy_that_goes_by_its_prior_alone_is_said_to_read_nothing(
    loud_model, tmp_path, monkeypatch
):
    options = ["--model_name_or_path", loud_model, "--output_dir", tmp_path / "run"]
    run_recipe(monkeypatch, "msft", *FAST, *WINDOWS, *options, "--learning_rate", "1e-9")
    found = audited(tmp_path / "run")
    assert any(said.startswith("It reads nothing: ") for said in found["verdict"])
    assert all(each["changed"] == 0 for each in found["counterfactuals"].values())


@pytest.mark.slow
def test_the_same_run_gives_the_same_audit(copy):
    one, two = audited(copy), audited(copy)
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert any("--knowledge_cutoff" in said for said in one["verdict"])


@pytest.mark.slow
def test_other_days_are_audited_where_they_are_named(copy, tmp_path):
    out = tmp_path / "elsewhere"
    cli.main(["audit", str(copy), "--start", "2021-01-04", "--end", "2021-02-12",
              "--output_dir", str(out)])  # fmt: skip
    found = json.loads((out / "audit.json").read_text())
    assert found["window"][:2] == ["2021-01-04", "2021-02-12"]
    assert "overlaps" not in str(found["assumptions"])
    assert not (copy / "audit.json").exists() and not (out / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing-there"], "nothing-there"),
        ([ROOT / "src", "--knowledge_cutoff", "soon"], "'soon' is not a date"),
        ([ROOT / "src"], "run.json"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_a_line(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["audit", *map(str, words)])
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert said in told and len(told.strip().splitlines()) == 1


def test_a_page_refuses_a_damaged_audit(copy):
    (copy / "audit.json").write_text("{")
    with pytest.raises(AdapterError, match=r"audit\.json is damaged"):
        page([copy])
    (copy / "audit.json").write_text('{"data_sha256": "0", "window": ["2020-01-01", "2020-02-01"]}')
    with pytest.raises(AdapterError, match="is of 2020-01-01 to 2020-02-01 or of other data"):
        page([copy])


def test_a_run_is_audited_by_its_name_alone():
    assert written_out(["audit", "runs/x"]) == ["audit", "run", "runs/x"]
    assert written_out(["audit", "--base", "b", "runs/x"])[1] == "run"
    assert written_out(["audit", "run", "run"]) == ["audit", "run", "run"]
    assert written_out(["train", "audit"]) == ["train", "audit"]
    assert parse(["audit", "runs/x"]).command == "audit run"


def test_there_is_a_test_for_every_change():
    """A market with news of all kinds has every change: whoever adds one, tests it."""
    from flagtrl.market.suite import SUITE

    assert len(changes(SUITE["news90"].make(40, 0).window())) == 8
