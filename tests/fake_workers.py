"""Workers that make no runs, but leave what made ones do."""

from concurrent.futures import Future

from flagtrl.evidence.page import PAGE_FILE
from flagtrl.evidence.report import RESULTS_FILE
from flagtrl.runs.sweep import Ended


class Fake:
    """Workers that do as they are told, at once.

    Args:
        out: the sweep's folder.
        codes: of a task's name: its exit code, if not 0.
        at: is called with each task before it ends.
    """

    def __init__(self, out, codes=(), at=lambda task: None):
        self.out, self.codes, self.at, self.made, self.left = out, dict(codes), at, [], False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.left = True

    def to_stop(self):
        return []

    def submit(self, task):
        future = Future()
        code = self.codes.get(task.name, 0)
        self.made.append(task.name)
        self.at(task)
        if code == 0:
            finish(task.directory(self.out))
        future.set_result(Ended(task, code, 60.0))
        return future


def finish(directory):
    """As tables need it, with nothing in it that they could read."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / RESULTS_FILE).write_text("{}")
    (directory / PAGE_FILE).write_text("")
