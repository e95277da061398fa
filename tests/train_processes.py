"""One process of a run that a launcher started, for tests/test_sharding.py: MODEL OUT OPTIONS_JSON
[CHECKPOINT].
"""

import json
import sys
from pathlib import Path

import torch

import cpu_sharding  # noqa: F401 (before accelerate's state is made)
from flagtrl.program import one_line_errors
from flagtrl.runs.stages import close
from training import tiny_trainer

torch.set_num_threads(1)


def main(model: str, out: str, options: str, checkpoint: str | None = None) -> None:
    trainer = tiny_trainer(Path(model), out, copied=False, **json.loads(options))
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if trainer.is_world_process_zero():
        kinds = [
            type(trainer.model_wrapped).__name__,
            *sorted({type(p.data).__name__ for p in trainer.model.parameters()}),
        ]
        stage = (
            trainer.accelerator.state.deepspeed_plugin.zero_stage
            if trainer.is_deepspeed_enabled
            else None
        )
        facts = {"kinds": kinds, "zero_stage": stage, "log": trainer.state.log_history}
        (Path(out) / "facts.json").write_text(json.dumps(facts))
    close(trainer)


if __name__ == "__main__":
    with one_line_errors():
        main(*sys.argv[1:])
