"""Two processes of torch.distributed for tests: a script that runs in each."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

START = """
import os
import sys
import torch
import torch.distributed as dist

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
torch.manual_seed(0)
"""
END = """
sys.stdout.flush()
dist.destroy_process_group()
os._exit(0)  # gloo's threads still release tensors, which aborts an interpreter that is being taken down
"""


def run_in_two(script: str, folder: Path, *, timeout: float = 120) -> list[str]:
    """Run ``script``, which knows ``rank`` and ``folder``, in two processes; return what each printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", START + script + END]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return outputs
