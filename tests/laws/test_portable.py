"""Text has the same bytes on every system, and what only some systems have is asked for first."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flagtrl

ROOT = Path(flagtrl.__file__).parent
TOP = ROOT.parents[1]
FILES = sorted(
    path
    for folder in ("src", "benchmarks", "recipes", "examples", "docs")
    for path in (TOP / folder).rglob("*.py")
)
BINARY_OPENERS = {"os", "tarfile", "zipfile", "Image"}  # whose open() reads no text
BINARY_BY_DEFAULT = {"gzip", "bz2", "lzma", "tempfile"}
# Of some systems only: Windows has none of them.
MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
NAMES = {
    *("os.fork", "os.forkpty", "os.getpgid", "os.geteuid", "os.getuid", "os.killpg", "os.setsid"),
    *("os.mkfifo", "os.statvfs", "os.sysconf", "os.sched_getaffinity", "os.getloadavg"),
    *("os.fchmod", "os.fchown", "os.chown", "os.wait", "os.waitpid", "os.uname"),
    *("signal.SIGALRM", "signal.SIGHUP", "signal.SIGKILL", "signal.SIGPIPE", "signal.SIGQUIT"),
    *("signal.SIGUSR1", "signal.SIGUSR2", "signal.SIGCHLD", "signal.setitimer", "signal.alarm"),
}
# The function asks first whether the system has the name.
ASKED = {
    *(("signals.py", "signal.SIGALRM"), ("signals.py", "signal.setitimer")),
    # benchmarks/field.py asks for /proc first
    *(("field.py", "start_new_session"), ("common.py", "os.sysconf")),
}


def called(node: ast.Call) -> tuple[str, str | None]:
    """The name that is called, and that of the object or module it belongs to."""
    if isinstance(node.func, ast.Attribute):
        owner = node.func.value
        return node.func.attr, owner.id if isinstance(owner, ast.Name) else ""
    return getattr(node.func, "id", ""), None


def binary(node: ast.Call, position: int, default: str) -> bool:
    """Whether a call's mode is one of bytes, however it is chosen."""
    named = [k.value for k in node.keywords if k.arg == "mode"]
    given = [*named, *node.args[position : position + 1], ast.Constant(default)][0]
    either = [given.body, given.orelse] if isinstance(given, ast.IfExp) else [given]
    return all(isinstance(each, ast.Constant) and "b" in str(each.value) for each in either)


def needs_an_encoding(node: ast.Call) -> bool:
    name, owner = called(node)
    named = {k.arg: k.value for k in node.keywords}
    if "encoding" in named:
        return False
    if owner is not None and name in ("read_text", "write_text"):
        return len(node.args) <= (name == "write_text")
    if name in ("open", "fdopen") and (owner not in BINARY_OPENERS or name == "fdopen"):
        if owner in BINARY_BY_DEFAULT:
            return not binary(node, 1, "rb")
        function = owner is None or owner in ("io", "os", "codecs")
        return not binary(node, 1 if function else 0, "r")
    if name in ("NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile"):
        return not binary(node, 0, "w+b")
    if name in ("TextIOWrapper", "FileHandler"):
        return True
    said = [named.get(word) for word in ("text", "universal_newlines")]
    return any(isinstance(value, ast.Constant) and value.value is True for value in said)


def without_encoding(source: str) -> list[int]:
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [node.lineno for node in calls if needs_an_encoding(node)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TOP)))
def test_text_is_read_and_written_in_an_encoding_of_its_own(path):
    lines = without_encoding(path.read_text(encoding="utf-8"))
    assert not lines, f'{path.relative_to(TOP)}: encoding="utf-8" is missing in lines {lines}'


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("p.read_text()", True),
        ("p.read_text(errors='replace')", True),
        ("p.read_text('utf-8')", False),
        ("(a / b).write_text(text)", True),
        ("p.write_text(text, encoding='utf-8')", False),
        ("write_text(path, text)", False),  # flagtrl.files has it
        ("open(path)", True),
        ("open(path, mode)", True),
        ("open(path, 'wb')", False),
        ("path.open()", True),
        ("path.open('ab', buffering=0)", False),
        ("path.open('ab' if more else 'wb')", False),
        ("path.open('ab' if more else 'w')", True),
        ("os.open(path, flags)", False),
        ("os.fdopen(number)", True),
        ("gzip.open(path)", False),
        ("gzip.open(path, 'rt')", True),
        ("tempfile.TemporaryFile()", False),
        ("tempfile.NamedTemporaryFile('w')", True),
        ("subprocess.run(words, text=True)", True),
        ("subprocess.run(words, text=True, encoding='utf-8')", False),
        ("subprocess.run(words)", False),
        ("replace(item, text=NEW[0])", False),
    ],
)
def test_a_missing_encoding_is_found(source, missing):
    assert bool(without_encoding(source)) == missing


def of_some_systems(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} & MODULES
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & NAMES
        elif isinstance(node, ast.Attribute):
            found |= {ast.unparse(node)} & NAMES
        elif isinstance(node, ast.keyword) and node.arg in ("start_new_session", "preexec_fn"):
            found.add(node.arg)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TOP)))
def test_nothing_of_one_system_is_used_unasked(path):
    found = of_some_systems(path.read_text(encoding="utf-8"))
    assert {name for name in found if (path.name, name) not in ASKED} == set()


def test_what_one_system_has_is_found():
    source = "import fcntl\nfrom os import fork\nsignal.SIGKILL\nrun(start_new_session=True)"
    assert of_some_systems(source) == {"fcntl", "os.fork", "signal.SIGKILL", "start_new_session"}


def test_every_module_is_imported_without_what_one_system_has():
    """In a Python that refuses to our modules what Windows lacks; other libraries know their ways
    there.
    """
    modules = [
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        for path in sorted(ROOT.rglob("*.py"))
        if path.stem not in ("__init__", "__main__")
    ]
    assert len(modules) > 150
    program = f"""
import builtins, importlib
whole = builtins.__import__
def without(name, globals=None, *others, **named):
    if name in {MODULES!r} and str((globals or {{}}).get("__name__")).startswith("flagtrl"):
        raise ModuleNotFoundError(name)
    return whole(name, globals, *others, **named)
builtins.__import__ = without
for name in {modules!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name is None:  # what is refused; else an extra that is not here
            raise
print("imported")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout) == (0, "imported\n"), done.stderr[-2000:]
