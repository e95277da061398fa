"""Real FSDP2 and DeepSpeed on a CPU, for tests. Import it before anything makes accelerate's state.

Stock accelerate takes a machine without accelerators for one that cannot shard, and trains an FSDP
configuration as plain data-parallel. Told that there is a backend (gloo) and a device (the CPU), it
builds what it would build on GPUs.
"""

import importlib
import os

from accelerate.state import DistributedType, PartialState


def gloo(self, cpu=False, sagemaker_dp=False, backend=None):
    """In place of PartialState._prepare_backend, for processes that a launcher has started to shard
    a model.
    """
    # FSDP is looked for where there are several GPUs only; DeepSpeed replaces any type by its own.
    sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    return "gloo", DistributedType.MULTI_GPU if sharded else DistributedType.MULTI_CPU


if "true" in (os.environ.get("ACCELERATE_USE_FSDP"), os.environ.get("ACCELERATE_USE_DEEPSPEED")):
    # accelerate's own variable: no device is looked for
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = gloo
if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
    backend = importlib.import_module("deepspeed.comm.torch")
    # minutes of compilation, for a faster way between processes than gloo
    backend.build_shm_op = lambda: None
