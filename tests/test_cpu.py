"""What `cpu_tuning` sets, and that it changes no output by a bit."""

import ast
import copy
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import flagtrl
from architectures import CONFIGS, SHAPE, VOCABULARY
from flagtrl.cpu import FORCE_GQA, ONEDNN_CACHE, cpu_tuning, one_thread, return_freed_memory

ROOT = Path(flagtrl.__file__).parent


@pytest.fixture
def environment(monkeypatch):
    """No variable is set, and what is set goes afterwards."""
    variables: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", variables)
    return variables


def chosen(environment):
    return environment.get(ONEDNN_CACHE), environment.get(FORCE_GQA)


def there_is(monkeypatch, accelerator):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)


def test_both_libraries_are_told_where_there_is_no_accelerator(environment, monkeypatch):
    there_is(monkeypatch, False)
    cpu_tuning()
    assert chosen(environment) == ("128", "1")
    return_freed_memory()


def test_attention_is_left_alone_where_there_is_an_accelerator(environment, monkeypatch):
    there_is(monkeypatch, True)
    cpu_tuning()
    assert chosen(environment) == ("128", None)


def test_what_the_user_sets_stays(environment, monkeypatch):
    there_is(monkeypatch, False)
    environment.update({ONEDNN_CACHE: "7", FORCE_GQA: "0"})
    cpu_tuning()
    assert chosen(environment) == ("7", "0")


@pytest.fixture
def key_heads(monkeypatch):
    """How many key heads each attention is given."""
    attend, seen = torch.nn.functional.scaled_dot_product_attention, []

    def spied(query, key, *args, **kwargs):
        seen.append(key.shape[1])
        return attend(query, key, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spied)
    return seen


# Those whose attention is torch's, and has fewer key heads than query heads.
@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"gemma2", "deepseek-v2"}))
def test_attention_on_fewer_key_heads_gives_the_same_bits(environment, key_heads, name):
    """With padding: where there is no mask, transformers leaves the heads as they are anyway."""
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[name])  # that other tests share
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    ids = torch.randint(1, VOCABULARY, (3, 24))
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    logits, gradients = [], []
    for forced, heads in (("0", SHAPE["num_attention_heads"]), ("1", SHAPE["num_key_value_heads"])):
        environment[FORCE_GQA] = forced
        out = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
        model.zero_grad()
        out.pow(2).sum().backward()
        logits.append(out.detach())
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert key_heads == [heads] * SHAPE["num_hidden_layers"]
        key_heads.clear()
    assert torch.equal(*logits)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


def test_one_thread_is_given_back():
    torch.set_num_threads(2)
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def writes_environment(node: ast.AST) -> bool:
    """`os.environ[...] = ` and its methods that write."""
    if isinstance(node, ast.Assign):
        return any(ast.unparse(target).startswith("os.environ[") for target in node.targets)
    writing = ("setdefault", "update", "pop", "clear")
    return isinstance(node, ast.Call) and ast.unparse(node.func) in [
        *(f"os.environ.{method}" for method in writing),
        "os.putenv",
    ]


def test_no_other_module_writes_environment_variables():
    found = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if writes_environment(node)
    }
    assert found == {"cpu.py", "launch.py", "runs/arguments.py", "signals.py"}
