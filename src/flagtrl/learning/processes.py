"""What the processes of one run settle among them."""

from __future__ import annotations

import torch
from accelerate import Accelerator


def largest(here: int, accelerator: Accelerator) -> int:
    """The largest of what every process has; all of them must ask."""
    if accelerator.num_processes == 1:
        return here
    return int(accelerator.gather(torch.tensor([here], device=accelerator.device)).max())


def leave_processes() -> None:
    """Part from the other processes, once all have come this far; without it a process may abort at
    its exit.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
