"""What a process may use, read from folders like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from servewright_runtime.hardware import cpu_quota, detect, memory_limit_bytes

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1 = "5:memory:/pods/one\n4:cpu,cpuacct:/pods/one\n1:name=systemd:/\n"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        pytest.param({}, None, id="no cgroup at all"),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000"},
            None,
            id="v2 without a quota",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000"},
            1.5,
            id="v2 with a quota",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000",
                "sys/fs/cgroup/a/cpu.max": "200000 100000",
            },
            2.0,
            id="v2 with a quota on the parent",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/pods/one/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu/pods/one/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            0.5,
            id="v1 with a quota",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            3.0,
            id="v1 in a container that sees the host's path",
        ),
    ],
)
def test_the_cpu_quota_is_found(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(write(tmp_path, files)) == quota


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        pytest.param({}, None, id="no cgroup at all"),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max"},
            None,
            id="v2 without a limit",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": str(4 * GIB),
                "sys/fs/cgroup/a/memory.max": str(2 * GIB),
            },
            2 * GIB,
            id="v2 with the parent's limit the smaller",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/memory/pods/one/memory.limit_in_bytes": str(GIB),
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            GIB,
            id="v1 with a limit",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            None,
            id="v1 without a limit",
        ),
    ],
)
def test_the_memory_limit_is_found(
    tmp_path: Path, files: dict[str, str], limit: int | None
) -> None:
    assert memory_limit_bytes(write(tmp_path, files)) == limit


def test_the_smaller_of_machine_and_cgroup_counts(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal:       8388608 kB\n",
        "proc/cpuinfo": "processor : 0\nmodel name\t: A Fine CPU\n",
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": str(2 * GIB),
        "sys/fs/cgroup/cpu.max": "50000 100000",
    }
    hardware = detect(write(tmp_path, files))
    assert hardware.memory_bytes == 2 * GIB
    assert hardware.cpus == 1  # half a CPU is still one thread
    assert hardware.cpu_name == "A Fine CPU"


def test_this_machine_has_cpus_and_memory() -> None:
    hardware = detect()
    assert hardware.cpus >= 1
    assert hardware.memory_bytes > 2**28
