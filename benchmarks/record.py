"""What a benchmark leaves behind: its figures, the command and the machine that made them."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

import adjointdpm as adp

__all__ = ["write_record"]


def write_record(path: Path | None, script: str, argv: list[str], **figures: Any) -> None:
    """Write JSON; nothing without a path."""
    if path is None:
        return
    machine: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    launcher = "python" if processes == 1 else f"torchrun --nproc_per_node {processes}"
    record = {"command": f"{launcher} benchmarks/{script} {' '.join(argv)}", "machine": machine}
    versions = {"torch": torch.__version__, "adjointdpm": adp.__version__}
    path.write_text(json.dumps(record | versions | figures, indent=1) + "\n")
