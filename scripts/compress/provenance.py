"""Where a number comes from: the machine, the libraries, the commit, the command.

torch is imported only to name a GPU.
"""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from compress.cpu import cores
from compress.paths import ROOT

LIBRARIES = ("torch", "transformers", "datasets", "evaluate", "onnxruntime", "openvino", "optimum", "nncf", "numpy")
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def provenance(seed: int, threads: int, device: str) -> dict:
    """What is stored with a build: origin(), the command, its seed, threads and processes."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        **origin(device),
        "seed": seed,
        "threads": threads,
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
    }


def origin(device: str) -> dict:
    """The code, machine and libraries of this process: also stored with each measurement."""
    libraries = {name: installed(name) for name in LIBRARIES}
    return {**code(), "machine": machine(device), "libraries": libraries, "python": platform.python_version()}


def code() -> dict:
    """The commit, and whether the code differs from it; a copy without git takes the commit from SOURCE_COMMIT."""
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": os.environ.get("SOURCE_COMMIT"), "dirty": None}
    return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--", "scripts", "requirements.txt"))}


def installed(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def machine(device: str) -> dict:
    """CPU model, its flags that matter to compression, cores and memory; the GPU's name on cuda."""
    info, flags = {}, []
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            key, _, value = line.partition(":")
            info.setdefault(key.strip(), value.strip())
        flags = [flag for flag in CPU_FLAGS if flag in info.get("flags", "").split()]
    except OSError:
        pass  # not Linux: only the CPU's name below is known
    gpu = None
    if device == "cuda":
        import torch  # noqa: PLC0415

        gpu = torch.cuda.get_device_name()
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu": info.get("model name") or platform.processor() or "unknown",
        "cpu_family_model": f"{info.get('cpu family', '?')}/{info.get('model', '?')}",
        "cpu_flags": flags,
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": gpu,
    }


def git(*arguments: str) -> str | None:
    """The output of git, or None outside a checkout or without git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
