"""A run goes to the Hub and comes back as it was, over real HTTP to a local server; what can fail
says so in one line.
"""

import json
import shutil
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from fake_hub import CUT
from flagtrl.card import model_card
from flagtrl.cli import main
from flagtrl.errors import AdapterError
from flagtrl.evidence.report import evaluate
from flagtrl.hub import Publisher
from flagtrl.market.env import MarketSettings
from flagtrl.market.synthetic import news_leads_price
from flagtrl.patience import LONGEST_WAIT, _seconds
from flagtrl.policy.acting import language_policy
from flagtrl.policy.provenance import without_paths
from flagtrl.policy.saving import ADAPTER_FILE, HEADS_FILE
from flagtrl.program import one_line_errors
from flagtrl.record import RECORD_FILE
from old_runs import edited
from training import AtStep, digests, entries, equal, tiny_trainer, weights

ROOT = Path(__file__).resolve().parents[1]
REPO = "me/flagtrl-msft"
LOGITS = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
assert "flagtrl" not in sys.modules
print(model(torch.arange(5, 45)[None]).logits[0, -1, :50].tolist())
"""


@pytest.fixture(scope="module")
def finished(small_model, tmp_path_factory):
    """A trained run with its results, as a recipe leaves it."""
    out = tmp_path_factory.mktemp("run")
    trainer = tiny_trainer(small_model, out, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model()
    window = news_leads_price(days=40, seed=3).window()
    evaluate(
        language_policy(trainer.model, trainer.encoder), window, MarketSettings(lookback=3)
    ).write(out, trainer.record)
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


class Done(NamedTuple):
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(capfd):
    """Call a function as a command, with its exit code and what it printed."""

    def run(function, *arguments):
        capfd.readouterr()
        code = 0
        try:
            function(*arguments)
        except SystemExit as stopped:
            code = stopped.code
        return Done(code, *capfd.readouterr())

    return run


@pytest.fixture
def flagtrl(command, hub):
    """The command line."""
    return lambda *arguments: command(main, list(map(str, arguments)))


def away(hub, tmp_path, arguments, **more):
    """Run a program of its own that knows this Hub alone."""
    env = hub.environment(tmp_path / "home") | more
    env = {name: value for name, value in env.items() if value is not None}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=120, env=env
    )


def the_line(done):
    """The one line of an error that the user can act on."""
    assert done.returncode == 2, done.stderr[-2000:]
    return [line for line in done.stderr.splitlines() if line.startswith("flagtrl:")][-1]


@pytest.mark.slow
def test_a_run_comes_back_as_it_was_and_plain_peft_loads_it(
    small_model, run, hub, tmp_path, flagtrl
):
    pushed = flagtrl("push", run, REPO)
    assert pushed.returncode == 0, pushed.stderr[-2000:]
    assert hub.url in pushed.stdout
    names = set(hub.repos[REPO])
    assert {
        ADAPTER_FILE,
        HEADS_FILE,
        RECORD_FILE,
        "adapter_config.json",
        "results.json",
        "README.md",
    } <= names
    assert not [name for name in names if "checkpoint" in name or name.endswith((".pt", ".bin"))], (
        "no pickles, no checkpoints"
    )
    back = tmp_path / "back"
    pulled = flagtrl("pull", REPO, "--output_dir", back)
    assert pulled.returncode == 0 and str(back) in pulled.stdout
    for name in (ADAPTER_FILE, HEADS_FILE, "results.json"):
        assert (back / name).read_bytes() == (run / name).read_bytes()
    own = without_paths(json.loads((run / RECORD_FILE).read_text()))
    assert json.loads((back / RECORD_FILE).read_text()) == own, "but for where it lay here"
    far = away(hub, tmp_path, ["-c", LOGITS, small_model, REPO])
    near = away(hub, tmp_path, ["-c", LOGITS, small_model, run])
    assert far.returncode == near.returncode == 0, far.stderr[-2000:]
    assert far.stdout == near.stdout


def test_the_card_says_what_was_measured_and_no_local_path(run, small_model):
    card = model_card(run, REPO)
    results = json.loads((run / "results.json").read_text())["test"]
    for row in ("agent_greedy", "buy_and_hold", "random_p95"):
        cells = [
            f"{value:.3f}"
            for by in results[row].values()
            for value in by.values()
            if value is not None
        ]
        line = next(line for line in card.splitlines() if line.startswith(f"| {row} |"))
        assert all(cell in line for cell in cells)
    for part in (
        "library_name: peft",
        "equity_curve.png",
        "PeftModel.from_pretrained",
        "2502.11433",
        "Limits",
        "Licence",
    ):
        assert part in card
    assert str(small_model) not in card and str(run) not in card
    assert "base_model:" not in card, "a local directory is no base that the Hub could link to"


def test_the_card_says_of_the_record_what_training_saw_and_escapes_a_users_words(run):
    record = json.loads((run / "run.json").read_text())
    first, last, bars = record["windows"]["train"]
    results = json.loads((run / "results.json").read_text())

    def card_of(test, data=record["data"]):
        windows = {"train": [first, last, bars], "test": test}
        (run / "results.json").write_text(json.dumps({**results, "windows": windows}))
        edited(run, windows=windows, data=data)
        return model_card(run, REPO)

    after = ["2099-01-01", "2099-01-09", 7]
    assert f"(7 bars, all after training's last day, {last})" in card_of(after)
    symbol = "<img src=x>[a](b)|`c`"
    card = card_of([first, last, bars], {**record["data"], "symbol": symbol})
    assert "of which training saw some" in card
    assert "never saw" not in card and "<img" not in card.replace("\\<img", "")
    assert "\\<img src=x\\>\\[a\\](b)\\|\\`c\\`, from" in card


def test_a_link_out_of_the_run_is_not_pushed(run, hub, flagtrl, tmp_path):
    secret = tmp_path / "secret.md"
    secret.write_text("a token")
    (run / "qa.md").symlink_to(secret)
    assert "a token" not in model_card(run, REPO)
    done = flagtrl("push", run, REPO)
    assert done.returncode == 2 and "qa.md is a symbolic link to" in done.stderr
    assert REPO not in hub.repos or "qa.md" not in hub.repos[REPO]


OTHER = {"train": ["2020-01-01", "2020-01-31", 23]}


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"test": {}, "windows": OTHER}, r"is of the windows {'train': \['2020-01-01', "),
        ({"test": {}}, "does not say of which windows it is, the run's own are"),
        ({"test": {}, "windows": {}}, "does not say of which windows it is, the run's own are"),
        ([], "results.json is damaged"),
    ],
)
def test_results_that_are_not_the_runs_own_make_no_card(run, results, message):
    (run / "results.json").write_text(json.dumps(results))
    with pytest.raises(AdapterError, match=message):
        model_card(run, REPO)


@pytest.mark.parametrize("name", ["results.json", "adapter_config.json"])
def test_a_damaged_file_ends_a_push_in_one_line(run, hub, flagtrl, name):
    (run / name).write_text('{"test": {')
    line = the_line(flagtrl("push", run, REPO))
    assert f"{name} is damaged (" in line and not hub.repos


def test_the_card_links_a_base_of_the_hub(run):
    path = run / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(
        json.dumps({**config, "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"})
    )
    card = model_card(run, REPO)
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card
    assert 'AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")' in card


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "status"),
    [("/commit/", 503), ("/commit/", 429), ("/commit/", 0), ("/repos/create", 500)],
)
def test_a_busy_hub_and_a_lost_connection_are_tried_again(
    run, hub, tmp_path, path, status, flagtrl
):
    hub.fail(path, status, times=2)
    done = flagtrl("push", run, REPO)
    assert done.returncode == 0, done.stderr[-2000:]
    assert hub.repos[REPO][ADAPTER_FILE] == (run / ADAPTER_FILE).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/preupload/", "/commit/"])
def test_a_connection_lost_within_a_request_is_tried_again_and_all_arrives(run, hub, path, flagtrl):
    before = digests(run)
    hub.fail(path, CUT, times=2)
    done = flagtrl("push", run, REPO)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not [failure for failure in hub.failures if failure[2]]
    for name in (
        ADAPTER_FILE,
        HEADS_FILE,
        RECORD_FILE,
        "results.json",
        "trades.csv",
        "tokenizer.json",
    ):
        assert name in hub.repos[REPO]
    assert hub.repos[REPO][ADAPTER_FILE] == (run / ADAPTER_FILE).read_bytes()
    assert digests(run) == before, "the local copy is as it was"


@pytest.mark.parametrize("times", [1, 100])
def test_a_connection_lost_within_a_file_is_continued_by_the_next_pull(
    run, hub, tmp_path, times, flagtrl
):
    assert flagtrl("push", run, REPO).returncode == 0
    hub.fail(f"/resolve/main/{ADAPTER_FILE}", CUT, times)
    hub.fail(f"/{ADAPTER_FILE}", CUT, times)
    done = flagtrl("pull", REPO, "--output_dir", tmp_path / "back")
    if times == 100:
        assert "not pulled" in the_line(done) and "pull it again" in the_line(done)
        assert not (tmp_path / "back" / ADAPTER_FILE).exists(), "half a file is no file"
        hub.failures.clear()
        done = flagtrl("pull", REPO, "--output_dir", tmp_path / "back")
    assert done.returncode == 0, done.stderr[-2000:]
    for name, content in hub.repos[REPO].items():
        assert (tmp_path / "back" / name).read_bytes() == content


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "status", "named"),
    [
        ("/api/models/", 0, "no connection"),
        ("/api/models/", 503, "answered 503"),
        ("/api/models/", 404, "404"),
        ("/api/models/", 401, "does not know the token"),
        ("/tree/", 503, "did not arrive"),
        ("/resolve/", 503, ""),
    ],
)
def test_a_pull_to_a_directory_that_holds_something_never_claims_what_it_did_not_get(
    run, hub, tmp_path, path, status, named, flagtrl
):
    """The Hub's client itself returns such a directory as it is."""
    assert flagtrl("push", run, REPO).returncode == 0
    back = shutil.copytree(run, tmp_path / "back")
    (back / ADAPTER_FILE).write_bytes(b"of another run")
    hub.fail(path, status, times=1000)
    line = the_line(flagtrl("pull", REPO, "--output_dir", back))
    assert f"{REPO} was not pulled" in line and named in line
    hub.failures.clear()
    assert flagtrl("pull", REPO, "--output_dir", back).returncode == 0
    assert (back / ADAPTER_FILE).read_bytes() == hub.repos[REPO][ADAPTER_FILE]


@pytest.mark.parametrize("wait", ["1000", "Wed, 21 Oct 2099 07:28:00 GMT"])
def test_a_hub_that_asks_for_a_long_wait_is_not_waited_for(run, hub, wait, flagtrl):
    hub.fail("/commit/", 429, times=1000, Retry_After=wait)
    line = the_line(flagtrl("push", run, REPO))
    assert "answered 429 and asks to wait" in line and f"more than the {LONGEST_WAIT:.0f} s" in line
    assert commits(hub) == 1


def test_a_hub_that_asks_for_a_short_wait_gets_it(run, hub, flagtrl, monkeypatch):
    waits = []
    monkeypatch.setattr(
        "flagtrl.patience.time", SimpleNamespace(**{**vars(time), "sleep": waits.append})
    )
    hub.fail("/commit/", 429, times=1, Retry_After="7")
    hub.fail("/commit/", 503, times=1, Retry_After="no number")
    assert flagtrl("push", run, REPO).returncode == 0
    assert waits == [7.0, 0.02]


def test_retry_after_is_seconds_or_a_date():
    assert [
        _seconds(text)
        for text in (None, "", "3", "-1", "nan", "inf", "soon", "Wed, 21 Oct 2015 07:28:00 GMT")
    ] == [*(0, 0, 3, 0, 0, 0, 0, 0)]
    assert _seconds(formatdate(time.time() + 100, usegmt=True)) == pytest.approx(100, abs=2)


def test_a_hub_that_stays_away_is_one_line_and_pushing_again_works(run, hub, tmp_path, flagtrl):
    hub.fail("/commit/", 0, times=1000)
    before = (run / ADAPTER_FILE).read_bytes()
    line = the_line(flagtrl("push", run, REPO))
    assert "no connection" in line and str(run) in line and "push it again" in line
    assert (run / ADAPTER_FILE).read_bytes() == before
    hub.failures.clear()
    assert flagtrl("push", run, REPO).returncode == 0


@pytest.mark.parametrize(
    ("status", "named"), [(403, "may not do this"), (429, "answered 429, 4 times")]
)
def test_a_refusal_says_what_to_do(run, hub, tmp_path, status, named, flagtrl):
    hub.fail("/repos/create", status, times=1000)
    assert named in the_line(flagtrl("push", run, REPO))


def test_no_token_no_run_and_no_repository_are_told_apart(run, hub, tmp_path, flagtrl, monkeypatch):
    assert "there is no directory" in the_line(flagtrl("push", tmp_path / "nothing", REPO))
    (tmp_path / "nothing").mkdir()
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token: set HF_TOKEN" in the_line(flagtrl("push", run, REPO))
    assert not hub.requests, "nothing was asked"
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not know the token" in the_line(flagtrl("push", run, REPO))
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert "has no run.json" in the_line(flagtrl("push", tmp_path / "nothing", REPO))
    assert "no such repository" in the_line(flagtrl("pull", "me/none"))
    assert "give owner/name" in the_line(flagtrl("pull", "a/b/c"))
    hub.repos["me/other"] = {"config.json": b"{}"}
    assert "is not a flagtrl run" in the_line(flagtrl("pull", "me/other"))


def test_a_pull_leaves_pickles_and_programs_on_the_hub(run, hub, tmp_path, flagtrl):
    assert flagtrl("push", run, REPO).returncode == 0
    hub.repos[REPO] |= {"evil.py": b"boom", "weights.bin": b"boom"}
    flagtrl("pull", REPO, "--output_dir", tmp_path / "back")
    assert (tmp_path / "back" / RECORD_FILE).is_file()
    assert not list((tmp_path / "back").glob("*.py")) + list((tmp_path / "back").glob("*.bin"))


def test_a_new_repository_can_be_private(run, hub, tmp_path, flagtrl):
    assert flagtrl("push", run, REPO, "--private").returncode == 0
    assert hub.private == {REPO}


def test_a_private_repository_is_read_with_its_token_alone(
    run, hub, tmp_path, flagtrl, monkeypatch
):
    assert flagtrl("push", run, REPO, "--private").returncode == 0
    for token, named in (
        ("hf_wrong", "does not know the token"),
        (None, "or it is private and the token"),
    ):
        monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
        assert named in the_line(flagtrl("pull", REPO, "--output_dir", tmp_path / "back"))
        assert not (tmp_path / "back" / RECORD_FILE).exists()
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert flagtrl("pull", REPO, "--output_dir", tmp_path / "back").returncode == 0
    assert (tmp_path / "back" / ADAPTER_FILE).read_bytes() == (run / ADAPTER_FILE).read_bytes()


def test_what_flagtrl_did_not_write_is_not_uploaded(run, hub, flagtrl):
    (run / "run.yaml").write_text("hub_token: hf_secret\n")
    (run / "optimizer_0").mkdir()
    (run / "optimizer_0/.metadata").write_bytes(b"pickled")
    (run / "trainer_state.json").write_text("{}")
    (run / "eval").mkdir()
    (run / "eval/equity_curve-6.png").write_bytes(b"picture")
    assert flagtrl("push", run, REPO).returncode == 0
    assert set(hub.repos[REPO]) == {
        *(
            ADAPTER_FILE,
            HEADS_FILE,
            RECORD_FILE,
            "adapter_config.json",
            "results.json",
            "trades.csv",
            "README.md",
            "policy_manifest.json",
        ),
        *(
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "equity_curve.png",
            "eval/equity_curve-6.png",
        ),
    }


def train(small_model, out, strategy):
    """What a recipe does, in short."""
    with one_line_errors():
        publisher = Publisher("flagtrl-msft", strategy)
        saves = {"save_strategy": "steps", "save_steps": 6, "push_to_hub": True}
        trainer = tiny_trainer(small_model, out, rollouts=2, publisher=publisher, **saves)
        trainer.train()
        trainer.save_model()
        print("pushed", trainer.push_to_hub())


def commits(hub):
    return sum(count for request, count in hub.requests.items() if "/commit/" in request)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "expected"), [("end", 1), ("every_save", 3), ("checkpoint", 5)]
)
def test_a_run_is_pushed_as_it_trains(small_model, hub, tmp_path, strategy, expected, command):
    done = command(train, small_model, tmp_path / "run", strategy)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"pushed {hub.url}/{REPO}/commit" in done.stdout
    assert commits(hub) == expected, "two checkpoints and the end"
    files, out = hub.repos[REPO], tmp_path / "run"
    assert (
        files[HEADS_FILE] == (out / HEADS_FILE).read_bytes()
        and files[ADAPTER_FILE] == (out / ADAPTER_FILE).read_bytes()
    )
    if strategy == "every_save":
        assert not [name for name in files if "trainer_state" in name]
    whole = {
        name.removeprefix("last-checkpoint/")
        for name in files
        if name.startswith("last-checkpoint/")
    }
    if strategy == "checkpoint":
        last = {path.name for path in (out / "checkpoint-12").iterdir()}
        assert whole == last and {"optimizer.pt", "trainer_state.json", HEADS_FILE} <= whole
        assert (
            files["last-checkpoint/optimizer.pt"]
            == (out / "checkpoint-12/optimizer.pt").read_bytes()
        )
    else:
        assert not whole


@pytest.mark.slow
def test_a_run_is_resumed_from_the_checkpoint_that_the_hub_keeps(
    small_model, hub, tmp_path, flagtrl
):
    saves = {"save_strategy": "steps", "save_steps": 6}
    calm = tiny_trainer(small_model, tmp_path / "calm", rollouts=3, **saves)
    calm.train()
    stop = AtStep(lambda model: 1 / 0, 13)
    publisher = Publisher("flagtrl-msft", "checkpoint")
    lost = tiny_trainer(
        small_model,
        tmp_path / "lost",
        rollouts=3,
        publisher=publisher,
        push_to_hub=True,
        callbacks=[stop],
        **saves,
    )
    with pytest.raises(ZeroDivisionError):
        lost.train()
    shutil.rmtree(tmp_path / "lost")
    back = tmp_path / "back"
    assert flagtrl("pull", REPO, "--output_dir", back).returncode == 0
    assert not (back / "last-checkpoint").exists(), "pickles come only if asked for"
    assert flagtrl("pull", REPO, "--output_dir", back, "--checkpoint").returncode == 0
    resumed = tiny_trainer(small_model, tmp_path / "again", rollouts=3, **saves)
    resumed.train(resume_from_checkpoint=str(back / "last-checkpoint"))
    assert resumed.state.global_step == 18 and equal(weights(resumed), weights(calm))
    assert entries(resumed, 13)[:-1] == entries(calm, 13)[:-1], (
        "but the last, which averages over a process's life"
    )


def test_a_checkpoint_that_is_not_there_is_said(run, hub, tmp_path, flagtrl):
    assert flagtrl("push", run, REPO).returncode == 0
    assert "has no last-checkpoint" in the_line(
        flagtrl("pull", REPO, "--output_dir", tmp_path / "back", "--checkpoint")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("what nobody foresaw")]
)
def test_training_goes_on_whatever_a_push_of_a_checkpoint_meets(
    small_model, hub, tmp_path, monkeypatch, caplog, error
):
    def fail(*_):
        raise error

    publisher = Publisher("flagtrl-msft", "every_save")
    saves = {"save_strategy": "steps", "save_steps": 6, "push_to_hub": True}
    trainer = tiny_trainer(small_model, tmp_path / "run", rollouts=1, publisher=publisher, **saves)
    monkeypatch.setattr("flagtrl.hub.model_card", fail)
    trainer.train()
    assert trainer.state.global_step == 6
    assert "was not pushed" in caplog.text and str(error) in caplog.text


@pytest.mark.slow
def test_training_goes_on_without_the_hub_and_the_end_carries_all(
    small_model, hub, tmp_path, command, caplog
):
    hub.fail("/commit/", 0, times=4)  # the first checkpoint's four attempts
    done = command(train, small_model, tmp_path / "run", "every_save")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no connection" in caplog.text and "checkpoint-6 is whole" in caplog.text
    assert hub.repos[REPO][ADAPTER_FILE] == (tmp_path / "run" / ADAPTER_FILE).read_bytes()


@pytest.mark.slow
def test_a_hub_that_stays_away_at_the_end_leaves_the_run_and_the_command(
    small_model, hub, tmp_path, flagtrl, command
):
    hub.fail("/commit/", 503, times=1000)
    line = the_line(command(train, small_model, tmp_path / "run", "end"))
    assert "answered 503" in line and "push it again" in line
    assert (tmp_path / "run" / ADAPTER_FILE).is_file()
    hub.failures.clear()
    assert flagtrl("push", tmp_path / "run", REPO).returncode == 0


@pytest.mark.parametrize(
    ("token", "named"), [("hf_wrong", "does not know the token"), (None, "there is no token")]
)
def test_a_token_that_will_not_do_is_known_before_training(
    small_model, hub, tmp_path, monkeypatch, token, named, command
):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    line = the_line(command(train, small_model, tmp_path / "run", "end"))
    assert named in line and "without --push_to_hub" in line
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.slow
def test_a_recipe_pushes_what_it_measured(small_model, shared, hub, tmp_path):
    fast = (
        "--preset paper --sampled_paths 1 --total_timesteps 16 --num_steps 8 "
        "--gradient_accumulation_steps 2"
    )
    fast += " --prompt_style compact --news_token_budget 8"
    recipe = [
        ROOT / "recipes/train_msft.py",
        "--data",
        shared / "data/investorbench/msft.json",
        *fast.split(),
    ]
    recipe += [
        "--model_name_or_path",
        small_model,
        "--output_dir",
        tmp_path / "msft",
        "--save_strategy",
        "no",
    ]
    recipe += ["--push_to_hub", "true", "--hub_model_id", REPO, "--hub_private_repo", "true"]
    done = away(hub, tmp_path, recipe, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "pushed: " in done.stdout and hub.private == {REPO}
    assert json.loads(hub.repos[REPO]["results.json"])["test"]["buy_and_hold"]["paper"][
        "CR"
    ] == pytest.approx(15.340, abs=5e-4)
    assert (
        b"| buy_and_hold |" in hub.repos[REPO]["README.md"]
        and b"equity_curve.png" in hub.repos[REPO]["README.md"]
    )
