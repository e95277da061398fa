"""Reading order is import order, and the market knows no language."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import flagtrl

ROOT = Path(flagtrl.__file__).parent
# A module may import from its own package and from packages before it.
ORDER = (
    ("bounds", "countdown", "files", "made_with", "own_code", "places", "program", "signals"),
    ("record",),
    ("play", "market"),
    ("evidence",),
    ("language", "trl_environment"),
    ("cpu",),
    ("policy",),
    ("learning",),
    ("exact",),
    ("trading",),
    ("card", "patience", "pushed", "hub", "qa"),
    ("runs",),
    (
        "launch",
        "train",
        "demo",
        "options",
        "commands_evidence",
        "commands_audit",
        "cli",
        "__main__",
    ),
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
EVERYWHERE = ("flagtrl", "flagtrl.errors")
LATE_IMPORTS = {
    "flagtrl.market.sources": {"datasets"},
    "flagtrl.market.tables": {"pandas", "pyarrow.parquet"},
    "flagtrl.evidence.statistics": {"arch.bootstrap"},  # seconds long
    "flagtrl.learning.inherited": {"transformers"},  # where its source cannot be read
    "flagtrl.learning.sharding": {"deepspeed"},  # an extra, and seconds long
    "flagtrl.policy.dequantised": {"gguf"},  # an extra
    "flagtrl.policy.numeric": {"stable_baselines3"},  # an extra
    "flagtrl.runs.cluster": {"ray", "ray.exceptions"},  # an extra
    # not before a run that cannot be is refused
    "flagtrl.train": {"flagtrl.runs.run", "flagtrl.runs.parsing"},
    "flagtrl.cli": None,  # any
    "flagtrl.commands_evidence": None,
    "flagtrl.commands_audit": None,
}
HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "tokenizers",
    "bitsandbytes",
    "wandb",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(node: ast.AST, module: str) -> set[str]:
    """The modules that one import statement names; of flagtrl's own, as deep as it names them."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module}:{node.lineno}: a relative import; write the whole name"
        whole = {f"{node.module}.{alias.name}" for alias in node.names}
        return {name if name in MODULES else str(node.module) for name in whole}
    return set()


def own_imports(module: str) -> set[str]:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    named = {name for node in ast.walk(tree) for name in imports(node, module)}
    return {name for name in named if name.split(".")[0] == "flagtrl"}


def test_every_module_is_in_the_order():
    unknown = sorted({name.split(".")[1] for name in MODULES if name not in EVERYWHERE} - set(RANK))
    assert not unknown, f"give {unknown} a place in ORDER"
    assert len(MODULES) > 20


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_its_own_package_or_from_packages_before_it(module):
    named = own_imports(module) - set(EVERYWHERE)
    if module in EVERYWHERE:
        assert not named, "imported from everywhere, it may import nothing of ours"
        return
    own = module.split(".")[1]
    wrong = {
        name for name in named if name.split(".")[1] != own and RANK[name.split(".")[1]] > RANK[own]
    }
    assert not wrong, f"{module} imports {sorted(wrong)}, which come after it"
    assert named <= set(MODULES), (
        f"{module} imports what is not there: {sorted(named - set(MODULES))}"
    )


def test_learning_loads_nothing_of_a_market_however_far_its_imports_reach():
    """Any environment is trained in: prompts of a market, its ledger and its data come after."""
    reached, ahead = set(), [name for name in MODULES if name.startswith("flagtrl.learning")]
    assert len(ahead) > 20
    while ahead:
        module = ahead.pop()
        if module not in reached:
            reached.add(module)
            ahead += own_imports(module)
    assert "flagtrl.policy.saving" in reached
    ours = ("flagtrl.market", "flagtrl.trading")
    assert [name for name in reached if name.startswith(ours)] == []


@pytest.mark.slow
def test_a_python_that_trains_anything_else_has_loaded_no_market():
    program = (
        "import sys, flagtrl.learning.trainer, flagtrl.learning.texts, flagtrl.learning.episodes\n"
        "print([name for name in sys.modules if name.startswith('flagtrl.market')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stdout + done.stderr[-2000:]


def test_modules_import_each_other_in_no_circle():
    graph = {module: own_imports(module) - {module} for module in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle
    assert order.index("flagtrl.market.ledger") < order.index("flagtrl.market.env")


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_imported_inside_a_function_but_what_is_heavy_and_rarely_needed(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    functions = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    ]
    late = {
        name
        for function in functions
        for node in ast.walk(function)
        for name in imports(node, module)
    }
    allowed = LATE_IMPORTS.get(module, set())
    assert allowed is None or late <= allowed, (
        f"{module} imports {sorted(late - allowed)} inside a function"
    )


def test_no_module_chooses_a_notebooks_backend():
    """Figures are drawn on a Figure of their own; what opens a window would set it."""
    for path in ROOT.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "matplotlib.use" not in text and "pyplot" not in text, path


def test_market_and_evidence_need_no_torch_and_leave_a_notebooks_backend(tmp_path):
    packages = ("flagtrl.market", "flagtrl.record", "flagtrl.evidence")
    names = [name for name in MODULES if name.startswith(packages)]
    assert len(names) >= 20
    program = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import matplotlib
matplotlib.use("svg")
import importlib
for name in {names!r}:
    importlib.import_module(name)
import numpy as np
from flagtrl.evidence.report import evaluate
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.policy import follow_news, rule
from flagtrl.market.synthetic import news_leads_price
from flagtrl.market.vector import VectorTradingEnv
from flagtrl.record import RunRecord
window = news_leads_price(10).window()
env = VectorTradingEnv([TradingEnv(window)])
env.reset(seed=0)
env.step(np.array([2]))
evaluate(rule(follow_news), window, MarketSettings()).write({str(tmp_path)!r}, RunRecord())
print(matplotlib.get_backend())
try:
    import torch
except ModuleNotFoundError:
    print("traded without torch")
"""
    # what records and reports name versions of is installed, and not imported
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "svg\ntraded without torch\n"
    assert {path.name for path in tmp_path.iterdir()} == {
        *("results.json", "trades.csv", "days.parquet", "equity_curve.png", "report.html")
    }
