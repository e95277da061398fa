"""The shipped tasks and market figures are in the wheel; the tasks run from it, offline, from any
working directory.
"""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from flagtrl.market.embedded import FOLDER
from flagtrl.qa.evaluate import TASKS
from qa_inputs import lora

ROOT = Path(__file__).resolve().parents[2]


def build(out):
    """A wheel of this check-out, built without network."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(out),
        ".",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(out.glob("flagtrl-*.whl"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_task_runs_from_a_wheel(shared, small_model, data, tmp_path):
    wheel = build(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("flagtrl/qa/tasks/")}
        figures = {
            name for name in archive.namelist() if name.startswith("flagtrl/market/investorbench/")
        }
        assert not [name for name in archive.namelist() if name.endswith(".jsonl")], (
            "no QA data set is in the package"
        )
    assert packed == {f"flagtrl/qa/tasks/{path.name}" for path in TASKS.iterdir() if path.is_file()}
    assert (
        figures == {f"flagtrl/market/investorbench/{path.name}" for path in FOLDER.iterdir()}
        and len(figures) == 5
    )
    # A clean environment that sees the installed dependencies, but of flagtrl only the wheel.
    venv.create(tmp_path / "env", with_pip=True, system_site_packages=False)
    python = tmp_path / "env/bin/python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)],
        check=True,
        timeout=300,
    )
    site = next((tmp_path / "env/lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(
        next(path for path in sys.path if path.endswith("site-packages")) + "\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
    where = subprocess.run(
        [python, "-c", "import flagtrl; print(flagtrl.__file__)"],
        cwd=elsewhere,
        env=env,
        capture_output=True,
        text=True,
    )
    assert str(site) in where.stdout, where.stdout + where.stderr
    for base in (shared / "models/stories260K", small_model):
        adapter = lora(base, tmp_path / f"lora_{base.name}", 0.1)
        command = [
            tmp_path / "env/bin/flagtrl",
            "qa",
            "--base",
            base,
            "--adapter",
            adapter,
            "--data",
            data,
            "--device",
            "cpu",
        ]
        command += [
            "--tasks",
            "qa,classification",
            "--limit",
            "2",
            "--retention_prompts",
            "1",
            "--json",
            f"{base.name}.json",
        ]
        done = subprocess.run(
            list(map(str, command)),
            cwd=elsewhere,
            env=env,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        rows = json.loads((elsewhere / f"{base.name}.json").read_text())
        assert len({row["task"] for row in rows if row["task"].startswith("flagtrl_")}) == 21


def test_package_data_name_every_task_file():
    """The quick twin: what setuptools is told to pack is where the task files are."""
    settings = (ROOT / "pyproject.toml").read_text()
    assert '"qa/tasks/*"' in settings
    assert (
        len(
            [
                path
                for path in TASKS.iterdir()
                if path.suffix == ".yaml" and not path.name.startswith("_")
            ]
        )
        == 21
    )
    assert {path.name for path in TASKS.iterdir() if path.suffix == ""} >= {
        "_multiple_choice",
        "_answer_bits",
        "_generation",
    }
