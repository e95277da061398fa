"""Base against adapter on every shipped task: exact zeros, the plain base, lm-eval's own command
line, several seeds.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from flagtrl.cli import main
from flagtrl.errors import AdapterError, ConfigError, DataError
from flagtrl.qa import arms
from flagtrl.qa.arms import arm, load_arms, load_vllm
from flagtrl.qa.evaluate import TASKS, adjusted, compare, load_tasks, pair, run_arm
from flagtrl.qa.paired import PairedLM
from flagtrl.qa.report import markdown
from flagtrl.qa.run import Comparison, question_sets, run
from flagtrl.record import RunRecord
from old_runs import edited
from qa_inputs import lora

ALL = ("qa", "classification")
FIELDS = ["task", "metric", "n", "base", "adapter", "delta", "low", "high", "p"]
NAMES = {
    *(
        f"flagtrl_{name}_{kind}"
        for name in ("tatqa", "finqa", "convfinqa", "financebench")
        for kind in ("bits", "gen", "mc")
    ),
    *(f"flagtrl_{name}_mc_nocontext" for name in ("tatqa", "finqa", "convfinqa", "financebench")),
    *(
        f"flagtrl_{name}"
        for name in ("phrasebank", "fiqa_sa", "twitter_fin", "gold_headlines", "fomc")
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("which", ["stories260K", "small_model"])
def test_every_task_runs_and_an_adapter_of_zeros_changes_exactly_nothing(
    which, shared, small_model, data, tmp_path
):
    base = shared / "models/stories260K" if which == "stories260K" else small_model
    rows, notes = run(
        Comparison(
            (str(lora(base, tmp_path / "zero", 0.0)),),
            ALL,
            str(data),
            str(base),
            limit=2,
            retention_prompts=1,
            device="cpu",
        )
    )
    assert {row.task for row in rows if not row.task.startswith("retention_")} == NAMES
    assert {row.metric for row in rows} >= {
        "bal_acc",
        "acc",
        "label_bits",
        "bits_per_byte",
        "answer_match",
        "parse_rate",
        "kl",
    }
    for row in rows:
        d = row.difference
        if row.control:
            continue
        assert d.delta == 0 and d.base == d.adapter, row
        assert np.isnan(d.low) or (d.low, d.high) == (0, 0)
        assert np.isnan(d.p) or d.p == 1
    if which == "stories260K":
        assert any("lost their beginning" in note for note in notes), (
            "512 tokens do not hold a document"
        )


def test_a_trained_adapter_gives_deltas_with_intervals_and_the_named_fields(
    small_model, trained, data, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "general.txt").write_text("One summer day.\n\n" * 250)
    main(
        [
            *(
                "qa",
                "--base",
                str(small_model),
                "--adapter",
                str(trained),
                "--tasks",
                "twitter_fin,finqa_bits",
            ),
            *(
                "--data",
                str(data),
                "--json",
                "rows.json",
                "--output_dir",
                "out",
                "--limit",
                "12",
                "--retention_prompts",
                "2",
            ),
            *("--text", "general=general.txt", "--device", "cpu"),
        ]
    )
    rows = json.loads(Path("rows.json").read_text(), parse_constant=pytest.fail)
    assert [list(row) for row in rows] == [FIELDS] * len(rows)
    by = {(row["task"], row["metric"]): row for row in rows}
    for name in (
        ("flagtrl_twitter_fin", "label_bits"),
        ("flagtrl_finqa_bits", "bits_per_byte"),
        ("retention_general", "bits_per_byte"),
    ):
        row = by[name]
        assert row["delta"] != 0 and row["low"] < row["delta"] < row["high"]
        assert row["adapter"] - row["base"] == pytest.approx(row["delta"])
        assert row["p"] is None if name[0] == "flagtrl_twitter_fin" else 0 < row["p"] <= 1, (
            "random weights read no tweet"
        )
    assert by["flagtrl_twitter_fin", "acc"]["n"] == 12
    assert by["retention_questions", "kl"]["base"] == 0 < by["retention_questions", "kl"]["low"]
    assert by["retention_questions", "kl"]["p"] is None
    assert by["retention_trading", "top1_agreement"]["base"] == 1
    table = (tmp_path / "out/qa.md").read_text()
    printed = capsys.readouterr().out
    assert printed.strip() == table.strip()
    check_controls(by, Path(data / "twitter_fin.jsonl"))
    assert "No information: twitter_fin." in table
    assert "detectable" in table and "What a small model can show" in table and "exactly 0" in table
    assert (tmp_path / "out/qa.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out/qa.json").read_bytes() == (tmp_path / "rows.json").read_bytes()


def check_controls(by, file, limit=12):
    """Two answers that read nothing stand beside every task, with the keys of every row; null where
    there is no such answer.
    """
    labels = [json.loads(line)["label"] for line in file.read_text().splitlines()[:limit]]
    most = max(map(labels.count, labels)) / limit
    expected = {
        "majority_acc": most,
        "majority_bal_acc": 1 / len(set(labels)),
        "uniform_acc": 1 / 3,
        "uniform_bal_acc": 1 / 3,
    }
    for metric, value in expected.items():
        row = by["flagtrl_twitter_fin", metric]
        assert row["base"] == pytest.approx(value) and row["n"] == limit
        assert [row[name] for name in ("adapter", "delta", "low", "high", "p")] == [None] * 5
    for metric in ("majority_bits_per_byte", "uniform_bits_per_byte"):
        assert by["flagtrl_finqa_bits", metric]["base"] is None


def requests(tokenizer):
    texts = ["The company's sales rose.", "Is it so? Answer:", "x " * 300]
    return [
        Instance("loglikelihood", {}, (text, end), i)
        for text in texts
        for i, end in enumerate((" yes", " no", " it fell by 5%"))
    ]


@pytest.mark.parametrize("which", ["stories260K", "small_model"])
def test_the_arms_are_the_plain_base_and_the_plain_adapter(
    which, shared, small_model, trained, tmp_path
):
    """Against lm-eval's own model class, with logits at every position, on separately loaded
    models; rel: float32, -53 nats.
    """
    path = small_model if which == "small_model" else shared / "models/stories260K"
    adapter = trained if which == "small_model" else lora(path, tmp_path / "lora", 0.1)
    model, tokenizer, (name,), _ = load_arms(str(path), [str(adapter)], "cpu")
    ours = PairedLM(model, tokenizer, batch_size=3)
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    asked = requests(tokenizer)
    reference = HFLM(
        pretrained=plain,
        tokenizer=AutoTokenizer.from_pretrained(path),
        backend="causal",
        batch_size=2,
    )
    with arm(model, None):
        base = ours.loglikelihood(asked, disable_tqdm=True)
    with arm(model, name):
        tuned = ours.loglikelihood(asked, disable_tqdm=True)
    expected = reference.loglikelihood(asked, disable_tqdm=True)
    assert [x for x, _ in base] == pytest.approx([x for x, _ in expected], abs=1e-5, rel=1e-6)
    assert [greedy for _, greedy in base] == [greedy for _, greedy in expected]
    reference._model = arms.PeftModel.from_pretrained(plain, str(adapter))
    with_adapter = reference.loglikelihood(asked, disable_tqdm=True)
    assert [x for x, _ in tuned] == pytest.approx([x for x, _ in with_adapter], abs=1e-5, rel=1e-6)
    assert max(abs(a - b) for (a, _), (b, _) in zip(base, tuned, strict=True)) > 1e-3


def test_only_the_rows_that_are_read_are_computed(small_model, trained, monkeypatch):
    model, tokenizer, _, _ = load_arms(str(small_model), [str(trained)], "cpu")
    lm = PairedLM(model, tokenizer, batch_size=4)
    seen, call = [], PairedLM._model_call

    def remember(self, *args):
        seen.append(call(self, *args))
        return seen[-1]

    monkeypatch.setattr(PairedLM, "_model_call", remember)
    asked = [
        Instance("loglikelihood", {}, ("the same context " * 20 + "Answer:", f" {x}"), i)
        for i, x in enumerate("ABCD")
    ]
    lm.loglikelihood(asked, disable_tqdm=True)
    assert [tuple(logits.shape) for logits in seen] == [(1, 1, 49152)], (
        "four one-token labels: one forward, one row"
    )


# Every kind of task: bits per byte, multiple choice with and without context, generation,
# classification.
QUICK = ("flagtrl_fiqa_sa", "flagtrl_tatqa_bits", "flagtrl_tatqa_mc", "flagtrl_finqa_gen")
ARMS = ("base", "adapter")


@pytest.fixture
def compared(small_model, loras, data):
    """What flagtrl finds on tasks, by task and metric."""

    def compare_on(tasks):
        options = {"base": str(small_model), "limit": 4, "retention_prompts": 0, "device": "cpu"}
        rows, _ = run(Comparison((str(loras[0]),), tuple(tasks), str(data), **options))
        return [row for row in rows if not row.task.startswith("retention_") and not row.control]

    return compare_on


def check_agreement(ours, theirs, which):
    """lm-eval's results of a base, with `peft=` or without, against our arm of that name."""
    for row in ours:
        expected = theirs[row.task][f"{row.metric},none"]
        assert getattr(row.difference, which) == pytest.approx(expected, abs=1e-4), (
            row.task,
            row.metric,
            which,
        )


@pytest.mark.slow
@pytest.mark.parametrize("which", ARMS)
def test_lm_evals_own_evaluation_agrees(which, compared, small_model, loras, data):
    """What its command line runs, without the index of its 13,000 other task files: the quick twin
    of the test below.
    """
    model = {"pretrained": str(small_model), "dtype": "float32"} | (
        {"peft": str(loras[0])} if which == "adapter" else {}
    )
    manager = TaskManager(
        include_path=str(TASKS), include_defaults=False, metadata={"data": str(data), **model}
    )
    results = simple_evaluate(
        "hf", model, list(QUICK), task_manager=manager, limit=4, device="cpu", bootstrap_iters=0
    )
    ours = compared(QUICK)
    assert len(ours) == 8
    check_agreement(ours, results["results"], which)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("which", ARMS)
def test_lm_evals_own_command_line_agrees_on_every_task(
    which, compared, small_model, loras, data, tmp_path
):
    peft = f",peft={loras[0]}" if which == "adapter" else ""
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "run",
        "--model",
        "hf",
        "--tasks",
        ",".join(sorted(NAMES)),
    ]
    command += [
        "--model_args",
        f"pretrained={small_model}{peft},dtype=float32",
        "--device",
        "cpu",
        "--batch_size",
        "1",
    ]
    command += [
        "--include_path",
        str(TASKS),
        "--metadata",
        json.dumps({"data": str(data)}),
        "--limit",
        "4",
    ]
    command += ["--output_path", str(tmp_path / "theirs")]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=800, cwd=tmp_path, env=env
    )
    assert done.returncode == 0, done.stderr[-2000:]
    written = next((tmp_path / "theirs").rglob("results_*.json"))
    ours = compared(sorted(NAMES))
    assert {row.task for row in ours} == NAMES
    check_agreement(ours, json.loads(written.read_text())["results"], which)


def test_several_adapters_are_one_row_with_each_ones_delta(small_model, loras, data):
    model, tokenizer, names, _ = load_arms(str(small_model), list(map(str, loras)), "cpu")
    lm, tasks = PairedLM(model, tokenizer, 4), load_tasks(["fiqa_sa"], data)
    together = compare(lm, lambda name: arm(model, name), names, tasks, limit=20)
    together = [row for row in together if not row.control]
    assert all(len(row.by_adapter) == 3 for row in together)
    for i, name in enumerate(names):
        alone = [
            row
            for row in compare(lm, lambda name: arm(model, name), [name], tasks, limit=20)
            if not row.control
        ]
        for one, row in zip(alone, together, strict=True):
            assert row.by_adapter[i] == pytest.approx(one.difference.delta)
    bits = next(row for row in together if row.metric == "label_bits")
    assert bits.difference.delta == pytest.approx(np.mean(bits.by_adapter))
    assert "per adapter" in markdown(together)


def test_one_base_is_in_memory(small_model, loras):
    """Two adapters add their own weights to the base's, and no second copy of it."""
    plain = AutoModelForCausalLM.from_pretrained(small_model)
    model, _, _, _ = load_arms(str(small_model), list(map(str, loras[:2])), "cpu")
    own = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert (
        sum(p.numel() for p in model.parameters())
        == sum(p.numel() for p in plain.parameters()) + own
    )


def test_primary_metrics_are_named_in_the_task_files_and_controls_are_outside_the_family(
    small_model, loras, data
):
    model, tokenizer, names, _ = load_arms(str(small_model), [str(loras[0])], "cpu")
    tasks = load_tasks(["finqa", "fiqa_sa"], data)
    rows = compare(
        PairedLM(model, tokenizer, 4), lambda name: arm(model, name), names, tasks, limit=3
    )
    primary = {(row.task, row.metric) for row in rows if row.primary}
    assert primary == {
        ("flagtrl_finqa_bits", "bits_per_byte"),
        ("flagtrl_finqa_mc", "acc"),
        ("flagtrl_finqa_gen", "answer_match"),
        ("flagtrl_fiqa_sa", "bal_acc"),
    }
    kept = {
        key
        for key in primary
        if next(row for row in rows if (row.task, row.metric) == key).informative
    }
    assert set(adjusted(rows)) == kept and ("flagtrl_fiqa_sa", "bal_acc") not in kept


def test_arms_that_saw_different_documents_are_refused(small_model, loras, data):
    model, tokenizer, _, _ = load_arms(str(small_model), [str(loras[0])], "cpu")
    lm, tasks = PairedLM(model, tokenizer, 4), load_tasks(["fiqa_sa"], data)
    few, more = run_arm(lm, tasks, 2), run_arm(lm, tasks, 3)
    with pytest.raises(AssertionError, match="different documents"):
        pair(few, [more], tasks, 0)


def test_mmlus_finance_subjects_are_lm_evals_own(monkeypatch):
    """The group as lm-eval's own manager loads it, but for the data, which are the Hub's."""
    loaded = []

    def no_download(task, *_, **__):
        loaded.append((task.config.task, task.DATASET_PATH, task.DATASET_NAME))
        rows = [
            {"question": "q", "choices": list("wxyz"), "answer": 0, "subject": task.DATASET_NAME}
        ] * 6
        task.dataset = {"test": Dataset.from_list(rows), "dev": Dataset.from_list(rows)}

    monkeypatch.setattr(ConfigurableTask, "download", no_download)
    tasks = load_tasks(["mmlu_finance"], "none")["tasks"]
    subjects = (
        "business_ethics",
        "econometrics",
        "high_school_macroeconomics",
        "high_school_microeconomics",
    )
    assert set(tasks) == {f"mmlu_{subject}" for subject in (*subjects, "professional_accounting")}
    assert {path for _, path, _ in loaded} == {"cais/mmlu"}
    assert all(name == f"mmlu_{subject}" for name, _, subject in loaded)


@pytest.mark.slow
def test_the_benchmark_loads_as_the_command_does(shared, data, tmp_path):
    """At a tiny shape: its rows are those that docs/qa.md cites, and one copy of the weights is
    held.
    """
    command = [
        sys.executable,
        "benchmarks/qa.py",
        "--data",
        data,
        "--tokenizer",
        shared / "models/smollm2_135m_tokenizer",
    ]
    command += ["--items", 2, "--threads", 1, "--size", "tiny", "--json", tmp_path / "rows.json"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        list(map(str, command)), cwd=root, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["engine"] for row in rows] == ["flagtrl", "apart", "lm_eval"]
    known = json.loads((root / "docs/qa_speed.json").read_text())
    assert all(
        set(row) == set(known[0]) and row["items"] == 2 and row["weights_mb"] > 0 for row in rows
    )


def test_vllm_is_one_engine_whose_requests_name_an_adapter_or_none(
    small_model, loras, trained, monkeypatch
):
    class Request(tuple):
        def __new__(cls, *fields):
            return super().__new__(cls, fields)

    class Engine:
        def __init__(self, **options):
            self.options, self.lora_request = (
                options,
                Request("finetuned", 1, options["lora_local_path"]),
            )

    monkeypatch.setattr(arms, "get_model", lambda name: {"vllm": Engine}[name])
    engine, switch, names = load_vllm(None, [str(path) for path in loras[:2]], "bfloat16")
    assert engine.options["pretrained"] == str(small_model) and engine.options["max_lora_rank"] == 8
    with switch(None):
        assert engine.lora_request is None
    for name, path in zip(names, loras, strict=False):
        with switch(name):
            assert engine.lora_request[1:] == (int(name[-1]) + 1, str(path))
    with pytest.raises(AdapterError, match="plain LoRA"):
        load_vllm(None, [str(trained)])

    def missing(**_):
        raise ModuleNotFoundError("package `vllm` is not installed")

    monkeypatch.setattr(arms, "get_model", lambda name: missing)
    with pytest.raises(ConfigError, match=r"vllm.*--model hf"):
        load_vllm(None, [str(loras[0])])


@pytest.mark.slow
def test_texts_are_measured_without_prompts_and_what_is_not_is_said(
    small_model, loras, data, tmp_path
):
    (tmp_path / "mine.txt").write_text("One summer day.\n\nIt rained.")
    for name in ("fiqa_sa", "tatqa", "finqa"):  # what is prepared and not named is not used
        shutil.copy(data / f"{name}.jsonl", tmp_path)
    options = {
        "base": str(small_model),
        "limit": 1,
        "device": "cpu",
        "texts": (f"mine={tmp_path / 'mine.txt'}",),
    }
    rows, notes = run(
        Comparison((str(loras[0]),), ("fiqa_sa",), str(tmp_path), retention_prompts=0, **options)
    )
    assert [row.task for row in rows][-2:] == ["retention_general_text", "retention_mine"]
    assert "--retention_prompts is 0" in " ".join(notes) and "Control: not measured" in " ".join(
        notes
    )
    rows, notes = run(
        Comparison((str(loras[0]),), ("fiqa_sa",), str(tmp_path), retention_prompts=1, **options)
    )
    assert {row.task for row in rows} == {
        "flagtrl_fiqa_sa",
        *(f"retention_{x}" for x in ("general_text", "mine", "trading")),
    }
    assert any(note.startswith("Not measured on questions and financial text") for note in notes)
    assert any("exactly 0 on prompts: 1 of trading." in note for note in notes)


def test_retention_asks_the_questions_of_the_named_tasks(data):
    expected = (
        (["fiqa_sa"], ()),
        (["finqa_bits", "fiqa_sa"], ("finqa",)),
        (["finqa", "tatqa_mc"], ("tatqa", "finqa")),
    )
    for names, sets in expected:
        assert question_sets(load_tasks(names, data)["tasks"]) == sets


@pytest.mark.parametrize(
    "bad", [{"device": "cpu"}, {"batch_size": 8}, {"texts": ("a=b.txt",)}, {"market": "m.json"}]
)
def test_what_vllm_would_ignore_is_refused(bad):
    Comparison(("x",), ("qa",), "data", model="vllm")
    with pytest.raises(ConfigError, match="use --model hf"):
        Comparison(("x",), ("qa",), "data", model="vllm", **bad)


def test_bad_settings_are_named(small_model, loras, data, tmp_path, capfd):
    adapter = str(loras[0])
    with pytest.raises(ConfigError, match=r"'fpb' is unknown; use .*phrasebank"):
        load_tasks(["fpb"], data)
    with pytest.raises(ConfigError, match=r"[Dd]uplicate"):
        load_tasks(["qa", "tatqa"], data)
    with pytest.raises(DataError, match="flagtrl qa prepare fomc"):
        load_tasks(["fomc"], tmp_path)
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        load_arms(str(small_model), [str(tmp_path)])
    with pytest.raises(ConfigError, match="dtype is 'int8'"):
        load_arms(str(small_model), [adapter], dtype="int8")
    for bad in (
        {"limit": 0},
        {"batch_size": 0},
        {"retention_prompts": -1},
        {"model": "gguf"},
        {"adapters": ()},
        {"tasks": ()},
    ):
        with pytest.raises(ConfigError):
            Comparison(**{"adapters": (adapter,), "tasks": ALL, "data": str(data), **bad})
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "qa",
                "--adapter",
                adapter,
                "--tasks",
                "tatqa",
                "--data",
                str(tmp_path),
                "--output_dir",
                str(tmp_path),
            ]
        )
    assert stop.value.code == 2
    assert "Traceback" not in (error := capfd.readouterr().err)
    assert error.strip().splitlines()[-1].startswith("flagtrl: DataError")


def test_an_adapter_of_another_base_is_named(shared, loras, tmp_path):
    with pytest.raises(AdapterError, match="their own base"):
        load_arms(str(shared / "models/stories260K"), [str(loras[0])], "cpu")


def test_a_base_of_the_same_shape_with_other_weights_is_refused(small_model, trained, tmp_path):
    other = AutoModelForCausalLM.from_pretrained(small_model)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(1.1)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(small_model).save_pretrained(tmp_path / "other")
    with pytest.raises(AdapterError, match=r"other weights.*--base"):
        load_arms(str(tmp_path / "other"), [str(trained)], "cpu")


def test_an_adapter_that_says_nothing_of_its_base_is_not_checked_and_that_is_said_once(
    small_model, loras, trained, caplog
):
    load_arms(str(small_model), [str(trained)], "cpu")
    assert not caplog.records
    load_arms(str(small_model), list(map(str, loras[:2])), "cpu", "bfloat16")
    (said,) = [record.getMessage() for record in caplog.records if record.name == "flagtrl.qa.arms"]
    assert said.startswith("not checked") and str(loras[0]) in said and str(loras[1]) in said
    with pytest.raises(AdapterError, match="cannot be put on the base"):
        load_arms(str(small_model), [str(loras[0]), str(trained)], "cpu")  # of two kinds


def test_the_commit_that_a_run_was_trained_on_is_the_one_that_is_loaded(
    small_model, trained, tmp_path, monkeypatch
):
    run_of_hub = shutil.copytree(trained, tmp_path / "run")
    base = asdict(RunRecord.read(run_of_hub).base)
    edited(run_of_hub, base={**base, "revision": "abc123"})
    config = run_of_hub / "adapter_config.json"
    content = json.loads(config.read_text()) | {"base_model_name_or_path": "me/base"}
    config.write_text(json.dumps(content))
    asked, load_base = [], arms.load_base

    def remember(name, revision=None):
        asked.append((name, revision))
        return load_base(str(small_model))

    monkeypatch.setattr(arms, "load_base", remember)
    load_arms(None, [str(run_of_hub)], "cpu")
    load_arms(str(small_model), [str(run_of_hub)], "cpu")
    assert asked == [("me/base", "abc123"), (str(small_model), None)]


def test_any_adapter_of_the_hub_is_pulled(hub, small_model, loras):
    """It need not be flagtrl's, but it is in safetensors."""
    assert not (loras[0] / "run.json").exists()
    hub.repos["me/adapter"] = {
        file.name: file.read_bytes() for file in loras[0].iterdir() if file.is_file()
    }
    model, _, (name,), (directory,) = load_arms(str(small_model), ["me/adapter"], "cpu")
    own, _, (own_name,), _ = load_arms(str(small_model), [str(loras[0])], "cpu")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad(), arm(model, name), arm(own, own_name):
        assert torch.equal(model(ids).logits, own(ids).logits)
    assert directory != loras[0]
    hub.repos["me/pickled"] = {
        "adapter_model.bin" if "safetensors" in n else n: c
        for n, c in hub.repos["me/adapter"].items()
    }
    with pytest.raises(AdapterError, match=r"'me/pickled' has no adapter_model\.safetensors"):
        load_arms(str(small_model), ["me/pickled"], "cpu")


def test_an_adapter_of_the_hub_opens_no_directory_and_imports_nothing(small_model, loras, tmp_path):
    pulled = shutil.copytree(loras[0], tmp_path / "pulled")
    load_arms(None, [str(pulled)], "cpu")  # one's own: its base is where it says
    # what the Hub's client leaves where it downloads to
    (pulled / ".cache/huggingface/download").mkdir(parents=True)
    with pytest.raises(AdapterError, match="never opened on this machine"):
        load_arms(None, [str(pulled)], "cpu")
    load_arms(str(small_model), [str(pulled)], "cpu")
    path = pulled / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "megatron_core": "evil.module"}))
    with pytest.raises(AdapterError, match=r"megatron_core is 'evil.module'"):
        load_arms(str(small_model), [str(pulled)], "cpu")


def test_the_switch_gives_the_base_back_after_an_error(small_model, loras):
    model, _, (name,), _ = load_arms(str(small_model), [str(loras[0])], "cpu")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        with arm(model, name):
            tuned = model(ids).logits
        with contextlib.suppress(ZeroDivisionError), arm(model, None):
            raise ZeroDivisionError
        assert torch.equal(model(ids).logits, tuned)


def test_an_arm_within_another_is_itself_and_gives_it_back(small_model, loras, trained):
    for adapters in (loras[:2], [trained]):
        model, _, names, _ = load_arms(str(small_model), list(map(str, adapters)), "cpu")
        ids = torch.arange(5, 25)[None]
        with torch.no_grad():
            alone = {}
            for name in (None, *names):
                with arm(model, name):
                    alone[name] = model(ids).logits
            assert not torch.equal(alone[None], alone[names[0]])
            for outer in alone:
                for inner in alone:
                    with arm(model, outer):
                        with arm(model, inner):
                            assert torch.equal(model(ids).logits, alone[inner])
                        assert torch.equal(model(ids).logits, alone[outer])


@pytest.mark.parametrize(
    "command", [["qa", "--adapter", "x", "--tasks", "tatqa"], ["qa", "prepare", "tatqa", "x"]]
)
def test_without_the_extra_one_line_says_what_to_install(command, monkeypatch, capfd):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "lm_eval" else find(name, *more),
    )
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    assert "pip install 'flagtrl[qa]'" in capfd.readouterr().err
