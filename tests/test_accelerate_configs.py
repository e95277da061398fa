"""Each file of accelerate_configs/ is one that accelerate reads, says when to use it, and fits its
command in the pages.
"""

import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

from flagtrl.learning.config import PPOConfig
from flagtrl.runs.parsing import parse_arguments
from test_readme import shell_commands
from training import tiny_trainer

ROOT = Path(__file__).resolve().parents[1]
FILES = {path.stem: path for path in sorted((ROOT / "accelerate_configs").glob("*.yaml"))}
KINDS = {
    "cpu": DistributedType.NO,
    "single_gpu": DistributedType.NO,
    "multi_gpu": DistributedType.MULTI_GPU,
    "multi_node": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
    "deepspeed_zero3": DistributedType.DEEPSPEED,
}
CONFIG = r"accelerate launch --config_file accelerate_configs/(\w+)\.yaml"
COMMAND = re.compile(rf"^.*{CONFIG}(.*) recipes/train_\w+\.py(.*)$", re.MULTILINE)


def test_every_file_is_known_here():
    assert set(FILES) == set(KINDS)


@pytest.mark.parametrize("name", FILES)
def test_accelerate_reads_it_and_a_comment_says_when_to_use_it(name):
    lines = FILES[name].read_text().splitlines()
    comment = [line for line in lines if line.startswith("# ")]
    assert lines[: len(comment)] == comment and len(" ".join(comment)) > 80
    config = load_config_from_file(str(FILES[name]))  # refuses unknown keys
    assert config.distributed_type == KINDS[name]
    assert config.use_cpu == (name == "cpu")
    assert config.mixed_precision == "no", "train_dtype decides"
    assert (config.num_processes > 1) == (KINDS[name] != DistributedType.NO)
    assert (config.num_machines > 1) == (name == "multi_node")


@pytest.mark.parametrize("name", FILES)
def test_the_launcher_takes_it(name, monkeypatch):
    monkeypatch.setattr("accelerate.commands.launch.is_bf16_available", lambda *_: False)
    args = launch_command_parser().parse_args(
        ["--config_file", str(FILES[name]), "recipes/train_msft.py"]
    )
    args, config, _ = _validate_launch_command(args)
    assert args.num_processes == config.num_processes
    assert args.use_deepspeed == (KINDS[name] == DistributedType.DEEPSPEED)
    if name == "fsdp2":
        assert (args.use_fsdp, str(args.fsdp_version), args.fsdp_state_dict_type) == (
            True,
            "2",
            "FULL_STATE_DICT",
        )
    if args.use_deepspeed:
        assert args.zero_stage == int(name[-1])


def test_every_pair_of_configuration_and_options_in_the_pages_is_one_that_the_trainer_takes(
    small_model, tmp_path, monkeypatch
):
    """A number of environments and a minibatch that so many processes can share."""
    seen = set()
    for name, launcher, options in COMMAND.findall(shell_commands()):
        config = load_config_from_file(str(FILES[name]))
        processes = int(
            (re.search(r"--num_processes (\d+)", launcher) or [None, config.num_processes])[1]
        )
        words = options.replace("DIR", str(tmp_path)).split()
        wanted = parse_arguments(
            {}, [*words, "--output_dir", str(tmp_path), "--use_cpu", "true"]
        ).ppo
        shape = (
            "num_envs",
            "num_steps",
            "minibatch_size",
            "gradient_accumulation_steps",
            "update_epochs",
            "total_timesteps",
        )
        with monkeypatch.context() as patch:
            patch.setattr(PPOConfig, "world_size", property(lambda self, n=processes: n))
            patch.setattr(PPOConfig, "process_index", property(lambda self: 0))
            tiny_trainer(
                small_model, tmp_path, **{field: getattr(wanted, field) for field in shape}
            )
        seen.add(name)
    assert seen >= {"single_gpu", "cpu", "multi_gpu", "fsdp2", "deepspeed_zero3", "multi_node"}
