"""The process on its machine: cores, open files, peak memory, and CPUs that lack exact 8-bit products."""

import math
import os
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
QUOTA_FILES = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))  # of cgroup versions 2 and 1, both in µs


def cores() -> int:
    """Cores that this process may use: fewer than the machine has, under taskset or with a container's CPU quota."""
    return max(1, math.floor(min(len(os.sched_getaffinity(0)), cpu_quota())))


def cpu_quota(root: Path = Path("/")) -> float:
    """CPUs that the cgroups of this process grant it, the least of all levels; inf without a quota.

    In a container the process may see the host's path of its cgroup, but only its own level, mounted as the root.
    """
    quotas = [math.inf]
    with suppress(OSError):  # not Linux
        for line in (root / "proc/self/cgroup").read_text("utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers or "cpu" in controllers.split(","):
                own = Path(group.lstrip("/"))
                mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
                quotas += [level_quota(mount / level) for level in (own, *own.parents)]
    return min(quotas)


def level_quota(folder: Path) -> float:
    """CPUs that one cgroup grants; inf without a quota, or without the folder."""
    for names in QUOTA_FILES:
        with suppress(OSError, ValueError):  # "max" is no number
            quota, period = (int(word) for name in names for word in (folder / name).read_text("utf-8").split())
            return quota / period if quota > 0 else math.inf
    return math.inf


def warn_of_saturation(model: str, backend: str, precision: str, options: dict) -> None:
    """Warns on standard error if this CPU may compute the model's 8-bit products wrongly. options: the variant's.

    Without VNNI, ONNX Runtime, OpenVINO and PyTorch add pairs of uint8 x int8 products in 16 bits (vpmaddubsw), which
    clips large sums.
    """
    overflows = backend in ("onnxruntime", "openvino", "cascade", "torch") and options.get("method") != "torchao"
    suffers = overflows and "int8" in precision and not options.get("reduced_range")
    if suffers and lacks_vnni():
        print(
            f"warning: {model}: this CPU has no VNNI instructions: 8-bit products can overflow, and predictions differ "
            "from the measured ones; take an ONNX Runtime file with reduced_range = true (int7 in its name)",
            file=sys.stderr,
        )


def lacks_vnni() -> bool:
    """Whether an x86 CPU has no VNNI. ARM has exact instructions, and its /proc/cpuinfo no line "flags"."""
    text = CPUINFO.read_text("utf-8") if CPUINFO.exists() else ""
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return bool(flags) and not {"avx_vnni", "avx512_vnni"} & set(flags[1].split())


def peak_rss_bytes() -> int:
    """This process's own high-water mark; getrusage would also count the process it was started from."""
    status = Path("/proc/self/status").read_text("utf-8")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1))


def raise_file_limit() -> int:
    """Raises the process's limit of open files as far as it may; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
