"""What errors say, and that they say it in one line."""

import os
import signal
import subprocess
import sys

import pytest

from flagtrl import cli
from flagtrl.errors import (
    ConfigError,
    in_one_line,
    kind_and_words,
    one_of,
    reason,
    unknown,
)
from flagtrl.program import one_line_errors


def test_only_what_is_allowed_passes():
    one_of("dtype", "float32", ("float32", "bfloat16"))
    with pytest.raises(ConfigError, match=r"^dtype is 'int4'; it must be one of float32, b"):
        one_of("dtype", "int4", {"float32": 1, "bfloat16": 2})


def test_an_unknown_name_is_answered_by_those_that_are_known():
    assert str(unknown("preset", "nope", ("flagtrl", "paper"))) == (
        "preset 'nope' is unknown; use one of flagtrl, paper"
    )
    assert str(unknown("reward", "x", ["a"], ", or FILE")).endswith("use one of a, or FILE")


@pytest.mark.parametrize(
    ("error", "first", "whole", "kind"),
    [
        (ValueError("two\n lines "), "two", "two lines", "ValueError: two lines"),
        (KeyError(), "KeyError", "KeyError", "KeyError: "),
        (OSError("x" * 300), "x" * 200, "x" * 200, "OSError: " + "x" * 200),
    ],
)
def test_an_errors_own_words_fit_one_line(error, first, whole, kind):
    assert (reason(error), in_one_line(error), kind_and_words(error)) == (first, whole, kind)


def test_a_closed_pipe_is_no_traceback(tmp_path):
    data = tmp_path / "abc.csv"
    data.write_text("date,close\n2024-01-02,1\n2024-01-03,2\n")
    code = "import sys, flagtrl.cli as c; sys.stdin.read(); c.main(['data', 'check', sys.argv[1]])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    process.stdin.close()
    with process:
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE


def test_a_rank_that_finds_another_gone_says_so_in_one_line(monkeypatch, capsys):
    gone = "[pair.cc:553] Connection closed by peer [127.0.0.1]:59024. GLHF!"
    with pytest.raises(RuntimeError), one_line_errors():  # of a run of one process it is a crash
        raise RuntimeError(gone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        raise RuntimeError(gone)
    said = capsys.readouterr().err
    assert stopped.value.code == 1 and said.count("\n") == 1 and "process 1 ends" in said
    with pytest.raises(ValueError, match="mine"), one_line_errors():
        raise ValueError("mine")


@pytest.mark.parametrize("words", [["data", "check"], ["push"], ["train", "--data"]])
def test_a_name_that_is_too_long_is_one_line(words, capsys):
    more = ["me/x"] if words == ["push"] else []
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "a" * 5000, *more])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and len(said.splitlines()) <= 3 and len(said) < 400


def test_bitsandbytes_fetches_no_code_while_it_is_imported(tmp_path):
    """A stand-in for each: on a processor with bfloat16 the real one asks for `kernels`."""
    (tmp_path / "kernels.py").write_text("print('fetched')")
    (tmp_path / "bitsandbytes.py").write_text(
        "try:\n    import kernels\nexcept ImportError as error:\n    print(error)\n"
    )
    code = "import flagtrl, bitsandbytes, kernels"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert done.stdout.split("\n")[0] == "flagtrl has no code fetched from the Hub"
    assert done.stdout.split("\n")[1] == "fetched", "whoever else asks for it has it"
