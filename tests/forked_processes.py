"""As many processes of a run as WORLD_SIZE says, of one import: the arguments of
tests/train_processes.py.
"""

import gc
import os
import sys

if gc.isenabled():
    gc.disable()  # as in conftest.py

from train_processes import main

if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    children = []
    for rank in range(int(os.environ["WORLD_SIZE"])):
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
        if not (child := os.fork()):
            main(*sys.argv[1:])
            os._exit(0)
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
