"""Sweeps on a Ray cluster: what comes home, a node that is lost, a signal; and what is refused."""

import io
import json
import os
import signal
import sys
import tarfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from flagtrl.errors import ConfigError, Interrupted
from flagtrl.evidence.page import PAGE_FILE
from flagtrl.evidence.report import RESULTS_FILE
from flagtrl.evidence.trials import trials_file
from flagtrl.evidence.walkforward import Length, Walk
from flagtrl.evidence.walkpage import WALK_FILE
from flagtrl.market.synthetic import news_leads_price
from flagtrl.runs import cluster as clusters
from flagtrl.runs import node as nodes
from flagtrl.runs.cluster import Cluster, RayWorkers, arrive, chosen_cluster, connect, workers_of
from flagtrl.runs.directory import claimed
from flagtrl.runs.node import NodeRun, pack, program, unpack
from flagtrl.runs.paper import Plan, replicate
from flagtrl.runs.sweep import LocalProcesses, Task, check_failures, sweep
from flagtrl.runs.walk import WalkForward, walk_forward
from ray_nodes import cluster, node
from short_runs import FAST, ROOT

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the extra cluster")

# Stands for a run, in the files that it leaves: a checkpoint every half a second, of which the last
# two stay, and results that are another's where one step was left out or made twice.
RUN = """
import argparse, hashlib, json, os, pathlib, signal, sys, time
parser = argparse.ArgumentParser()
for name in ("output_dir", "resume_from_checkpoint", "seed", "steps", "fail"):
    parser.add_argument("--" + name)
options = parser.parse_args()
out, stopped, state = pathlib.Path(options.output_dir), [], f"seed {options.seed}"
out.mkdir(parents=True, exist_ok=True)
signal.signal(signal.SIGTERM, lambda *_: stopped.append(143))
done = max((int(p.name[11:]) for p in out.glob("checkpoint-*")), default=0)
print("goes on from", done, options.resume_from_checkpoint, flush=True)
if options.fail:
    sys.exit("flagtrl: DataError: no such day")
if done:
    state = (out / f"checkpoint-{done}/weights").read_text()
for step in range(done + 1, int(options.steps) + 1):
    time.sleep(0.5)
    state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
    (new := out / f"incomplete-checkpoint-{step}").mkdir()
    (new / "weights").write_text(state)
    os.replace(new, out / f"checkpoint-{step}")
    if (old := out / f"checkpoint-{step - 2}").is_dir():
        os.replace(old, away := out / f"incomplete-{old.name}")
        (away / "weights").unlink()
        away.rmdir()
    if stopped:
        sys.exit(stopped[0])
(out / "results.json").write_text(json.dumps({"state": state, "folder": os.getcwd()}))
(out / "report.html").write_text("page")
with open(os.environ["FLAGTRL_TRIALS"], "a") as file:
    file.write(json.dumps({"policy": state}) + "\\n")
"""


def newest(directory):
    found = [path.name for path in Path(directory).glob("checkpoint-*")]
    return max(found, key=lambda name: int(name[11:]), default=None)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Makes tasks of RUN; its checkpoints are whole if they are there."""
    monkeypatch.setenv("FLAGTRL_TRIALS", str(tmp_path / "trials.jsonl"))
    monkeypatch.setattr(clusters, "last_checkpoint", newest)
    monkeypatch.setattr(clusters, "POLL_S", 0.2)
    file = tmp_path / "stand_in.py"
    file.write_text(RUN)
    return lambda name, *words: Task(name, words, (str(file),))


@pytest.fixture(scope="module")
def ray_cluster():
    pytest.importorskip("ray", reason="the extra cluster")
    with pytest.MonkeyPatch.context() as patch, cluster(patch) as made:
        yield made


@pytest.fixture
def two_nodes(ray_cluster):
    """Two, whatever a test before has killed."""
    if len(ray_cluster.list_all_nodes()) < 2:
        ray_cluster.add_node(**node())
    return ray_cluster


# ----------------------------------------------------------------------------------- on a cluster


@pytest.mark.slow
@needs_ray
def test_what_a_run_leaves_comes_home_and_what_fails_is_said(two_nodes, stand_in, tmp_path):
    tasks = [stand_in("a/fine", "--steps", "4"), stand_in("a/bad", "--fail", "1")]
    (tmp_path / "a/fine/checkpoint-1").mkdir(parents=True)  # of another day
    (tmp_path / "a/fine/checkpoint-1/weights").write_text("1")
    told = []
    failed = sweep(tasks, tmp_path, RayWorkers(tmp_path, Cluster(two_nodes.address)), told.append)
    assert [(each.task.name, each.code) for each in failed] == [("a/bad", 1)]
    with pytest.raises(ConfigError, match=r"1 of 2 runs failed; .*bad\.log ends: .*no such day"):
        check_failures(failed, tmp_path, 2)
    fine = tmp_path / "a/fine"
    log = tasks[0].log(tmp_path).read_text().splitlines()
    assert log[0].endswith("--resume_from_checkpoint true") and log[1] == "goes on from 1 true"
    assert {path.name for path in fine.iterdir()} - {".flagtrl.lock"} == {
        *("checkpoint-3", "checkpoint-4", RESULTS_FILE, PAGE_FILE)
    }, "what the run has removed is removed here"
    state = (fine / "checkpoint-4/weights").read_text()
    results = {"state": state, "folder": os.getcwd()}  # where the sweep was started
    assert json.loads((fine / RESULTS_FILE).read_text()) == results
    assert trials_file().read_text() == json.dumps({"policy": state}) + "\n"
    assert not list(tmp_path.glob("a/incomplete-*"))


@pytest.mark.slow
@needs_ray
def test_a_signal_reaches_every_run_and_what_they_save_comes_home(two_nodes, stand_in, tmp_path):
    tasks = [stand_in(f"a/seed-{n}", "--steps", "1000") for n in range(3)]
    first, second, third = (task.directory(tmp_path) for task in tasks)

    def stop():
        while newest(first) is None or newest(second) is None:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM; the finished runs are kept; the same command"):
        sweep(tasks, tmp_path, RayWorkers(tmp_path, Cluster(two_nodes.address)), lambda line: None)
    assert signal.getsignal(signal.SIGTERM) is before
    assert not third.exists() or newest(third) is None
    for directory in (first, second):
        assert newest(directory) is not None and not (directory / PAGE_FILE).exists()


@needs_ray
def test_a_cluster_without_room_or_another_flagtrl_is_refused(two_nodes, monkeypatch, tmp_path):
    address = two_nodes.address
    with pytest.raises(ConfigError, match=r"takes 2 cores and 0 GPUs, and no node .*: at most 1"):
        connect(Cluster(address, cpus=2))
    task = Task("a/run", ())
    monkeypatch.setattr(clusters, "program", lambda: {**program(), "torch": "1.0"})
    with RayWorkers(tmp_path, Cluster(address)) as workers:
        assert workers.submit(task).result(60).code == 2
    said = task.log(tmp_path).read_text()
    assert "has torch" in said and "and this machine 1.0; install the same" in said
    assert said.count("\n") == 1


def killing(made, when):
    """Kills the second node, once it is time; SIGKILL, to all of its processes."""

    def kill():
        while not when():
            time.sleep(0.05)
        [other] = [each for each in made.list_all_nodes() if each is not made.head_node]
        made.remove_node(other, allow_graceful=False)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


@needs_ray
def test_a_sweep_of_which_a_node_is_killed_gives_the_results_of_local_processes(
    two_nodes, stand_in, tmp_path
):
    tasks = [stand_in(f"a/seed-{n}", "--steps", "8", "--seed", str(n)) for n in range(3)]
    there, here, told = tmp_path / "cluster", tmp_path / "local", []
    killer = killing(two_nodes, lambda: all(newest(t.directory(there)) for t in tasks[:2]))
    workers = RayWorkers(there, Cluster(two_nodes.address), say=told.append)
    assert not sweep(tasks, there, workers, lambda line: None)
    killer.join()
    assert "its worker was lost" in told[0] and "; it goes on from checkpoint-" in told[0]
    lost = told[0].partition(":")[0]
    assert "--resume_from_checkpoint true" in (there / f"{lost}.log").read_text()
    assert not sweep(tasks, here, LocalProcesses(here, 3), lambda line: None)

    def table(out):
        return [json.loads((task.directory(out) / RESULTS_FILE).read_text()) for task in tasks]

    assert table(there) == table(here) and len({row["state"] for row in table(here)}) == 3
    assert len(trials_file().read_text().splitlines()) == 6, "nothing is counted twice"


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_paper_of_which_a_node_is_killed_has_the_tables_of_local_processes(
    small_model, tmp_path, monkeypatch
):
    """Real runs of a random model."""
    words = ["--model_name_or_path", str(small_model), *FAST[2:], "--save_strategy", "steps"]
    words += ["--save_steps", "1", "--save_total_limit", "2", "--train_start", "2020-07-01"]
    words += ["--test_start", "2020-10-01", "--test_end", "2020-11-10"]
    plan = Plan(["MSFT"], ["paper"], 2, words)
    there, here, told = tmp_path / "cluster", tmp_path / "local", []
    runs = [task.directory(there) for task in plan.tasks()]
    monkeypatch.setenv("FLAGTRL_TRIALS", str(tmp_path / "trials-cluster.jsonl"))
    with cluster(monkeypatch) as made:
        killer = killing(made, lambda: all(newest(run) for run in runs))
        replicate(plan, there, RayWorkers(there, Cluster(made.address), say=told.append))
        killer.join()
    assert "its worker was lost" in told[0] and "; it goes on from checkpoint-" in told[0]
    assert len(trials_file().read_text().splitlines()) == 2
    monkeypatch.setenv("FLAGTRL_TRIALS", str(tmp_path / "trials-local.jsonl"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    replicate(plan, here, LocalProcesses(here, 2))
    for name in ("tables.md", "tables.csv"):
        assert (there / name).read_text() == (here / name).read_text()


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_walk_and_the_learning_suite_are_those_of_local_processes(
    small_model, tmp_path, monkeypatch
):
    """Real runs of random models."""
    monkeypatch.setenv("FLAGTRL_TRIALS", str(tmp_path / "trials.jsonl"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import learning

    market, file = news_leads_price(160, seed=5), tmp_path / "ACME.csv"
    frame = pd.DataFrame({"date": market.dates, "close": market.prices})
    frame.to_csv(file, index=False)
    words = ["--data", str(file), "--model_name_or_path", str(small_model)]
    plan = WalkForward(Walk(Length(60), Length(45)), words=[*words, *FAST])
    suite = ["learning.py", "--markets", "news90,momentum", "--seeds", "0", "--steps", "40"]
    suite += ["--train_bars", "80", "--test_bars", "12"]
    there, here = tmp_path / "cluster", tmp_path / "local"
    with cluster(monkeypatch) as made:
        walk_forward(plan, there, RayWorkers(there, Cluster(made.address)), lambda line: None)
        on_nodes = [*suite, "--json", str(tmp_path / "a.json"), "--cluster", made.address]
        monkeypatch.setattr(sys, "argv", on_nodes)
        learning.main()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    walk_forward(plan, here, LocalProcesses(here, 1), lambda line: None)
    monkeypatch.setattr(sys, "argv", [*suite, "--json", str(tmp_path / "b.json"), "--jobs", "1"])
    learning.main()
    one, other = (json.loads((out / WALK_FILE).read_text()) for out in (there, here))
    assert len(one["steps"]) == 2 and one["rows"] == other["rows"]
    assert one["statistics"] == other["statistics"] and one["verdict"] == other["verdict"]
    records = [json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json")]
    shares = [[(r["market"], r["share"], r["curve"]) for r in made] for made in records]
    assert shares[0] == shares[1] and len(shares[0]) == 2


# ------------------------------------------------------------------------------- without a cluster


def followed(run, home):
    """Ask for news until a run has ended, as another machine does; code, log, parcels' names."""
    log, parcels = b"", []
    while True:
        news = run.look(())
        log += news.log
        if news.parcel:
            whole = io.BytesIO(b"".join(iter(run.part, b"")))
            with tarfile.open(fileobj=whole) as tar:
                parcels.append({name.partition("/")[0] for name in tar.getnames()})
            whole.seek(0)
            arrive(whole, home)
        if news.code is not None:
            return news.code, log.decode(), parcels
        time.sleep(0.05)


def test_a_parcel_has_what_was_not_sent_and_every_part_of_it(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "PART_BYTES", 100)  # also of the log: it is read in pieces
    home = tmp_path / "a/run"
    home.mkdir(parents=True)
    task, run = stand_in("a/run", "--steps", "3"), NodeRun(1, False)
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1/weights").write_text("1" * 1000)
    pack(tmp_path, ["checkpoint-1"], tmp_path / "parcel")
    with (tmp_path / "parcel").open("rb") as parcel:
        while part := parcel.read(999):
            run.take(part)
    run.begin([*task.program, *task.words], True, str(tmp_path), b'{"policy": 0}\n')
    code, log, parcels = followed(run, home)
    words, said = log.splitlines()
    assert code == 0 and said == "goes on from 1 true" and len(log) > 200
    assert words.endswith(f"--steps 3 --output_dir {run.run} --resume_from_checkpoint true")
    assert parcels[-1] - {"checkpoint-3"} == {RESULTS_FILE, PAGE_FILE}
    assert not any("checkpoint-1" in parcel for parcel in parcels), "home has it"
    state = (home / "checkpoint-3/weights").read_text()
    results = {"state": state, "folder": str(tmp_path)}
    assert json.loads((home / RESULTS_FILE).read_text()) == results
    assert json.loads(run.trials()) == {"policy": state}
    run.clear()
    assert not run.folder.exists()


@pytest.mark.parametrize(("gpus", "seen"), [(True, "7 3"), (False, " 3")])
def test_a_node_gives_its_runs_no_gpu_unasked(tmp_path, monkeypatch, gpus, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    show = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'])"
    run = NodeRun(3, gpus)
    run.begin(["-c", show], False, "/no/such/folder", b"")
    (tmp_path / "run").mkdir()
    _, log, _ = followed(run, tmp_path / "run")
    assert log.endswith(f"\n{seen}\n")
    run.clear()


def test_nothing_of_a_parcel_comes_to_lie_elsewhere(tmp_path):
    parcel = io.BytesIO()
    with tarfile.open(fileobj=parcel, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../out"))
    parcel.seek(0)
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack(parcel, tmp_path / "in")
    assert not (tmp_path / "out").exists()


def test_a_run_counts_as_finished_only_once_all_of_it_is_there(tmp_path, monkeypatch):
    home, away, moved = tmp_path / "run", tmp_path / "away", []
    home.mkdir()
    away.mkdir()
    for name in (RESULTS_FILE, PAGE_FILE, "run.json", ".flagtrl.lock", "incomplete-checkpoint-3"):
        (away / name).write_text(name)
    pack(away, [path.name for path in away.iterdir()], tmp_path / "parcel")
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(Path(b).name), replace(a, b)))
    with (tmp_path / "parcel").open("rb") as parcel:
        arrive(parcel, home)
    assert moved[0] == "run.json" and set(moved[1:]) == {RESULTS_FILE, PAGE_FILE}
    assert {path.name for path in tmp_path.iterdir()} == {"run", "away", "parcel"}


@pytest.mark.parametrize(("checkpoints", "attempts"), [([], 5), (["checkpoint-1"], 6)])
def test_a_run_that_loses_all_its_workers_has_failed(
    stand_in, tmp_path, monkeypatch, checkpoints, attempts
):
    """Each new checkpoint counts as a beginning."""
    pytest.importorskip("ray", reason="the extra cluster")
    from ray.exceptions import ActorDiedError

    workers, made, told = RayWorkers(tmp_path, Cluster("auto")), [], []
    workers.say = told.append
    monkeypatch.setattr(clusters, "WAIT_S", 0.001)
    left = list(checkpoints)

    def attempt(task, log):
        made.append(task)
        if len(made) > 1 and left:
            (task.directory(tmp_path) / left.pop()).mkdir()
        raise ActorDiedError

    monkeypatch.setattr(workers, "_attempt", attempt)
    task = stand_in("a/run")
    assert workers._make(task).code == 1 and len(made) == attempts
    lines = task.log(tmp_path).read_text().splitlines()
    assert lines[-1] == (
        "flagtrl: a/run: its worker was lost (ActorDiedError), as 4 before it; see the nodes"
    )
    assert told[0] == "a/run: its worker was lost (ActorDiedError); it begins anew"
    assert len(told) == attempts - 1 and ("it goes on from" in told[-1]) == bool(checkpoints)


def test_another_sweep_at_work_in_the_folder_is_said(stand_in, tmp_path):
    pytest.importorskip("ray", reason="the extra cluster")
    task = stand_in("a/run")
    task.directory(tmp_path).mkdir(parents=True)
    with claimed(task.directory(tmp_path)):
        assert RayWorkers(tmp_path, Cluster("auto"))._make(task).code == 2
    assert "another run is at work there" in task.log(tmp_path).read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("auto", 0, None), "cpus is 0; it must be at least 1"),
        (("auto", None, -1.0), "gpus is -1.0; it must be at least 0"),
        (("auto", None, float("nan")), "gpus is nan; it must be at least 0"),
        ((None, 2, None), "cpus is 2 without --cluster; name its address too"),
        ((None, None, 0.5), "gpus is 0.5 without --cluster"),
        (("", None, None), "cluster is ''; give auto, HOST:PORT or ray://HOST:PORT"),
        (("10.0.0.1", None, None), "cluster is '10.0.0.1'; give auto"),
        (("10.0.0.1:x", None, None), "give auto, HOST:PORT"),
        (("10.0.0.1:65536", None, None), "give auto, HOST:PORT"),
        (("http://10.0.0.1:1", None, None), "give auto, HOST:PORT"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        chosen_cluster(*options)


def test_this_machine_is_the_default(tmp_path):
    assert chosen_cluster(None, None, None) is None
    assert isinstance(workers_of(tmp_path, None, None), LocalProcesses)
    with pytest.raises(ConfigError, match="jobs is 0; it must be at least 1"):
        workers_of(tmp_path, 0, None)


def test_without_ray_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs ray, .* pip install 'flagtrl\[cluster\]'"):
        Cluster("auto")


@needs_ray
def test_a_cluster_that_does_not_answer_is_refused_at_once(tmp_path, monkeypatch):
    """Ray itself tries for minutes."""
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:1 cannot be reached .*refused.*ray start"):
        connect(Cluster("127.0.0.1:1"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:2")
    with pytest.raises(ConfigError, match=r"the cluster auto cannot be reached .*refused"):
        connect(Cluster("auto"))
