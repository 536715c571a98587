"""Finding and choosing devices; control groups are read from folders made here, GPUs are told by a
stand-in for torch.cuda (no test machine has one)."""

from types import SimpleNamespace

import pytest
import torch

from atelier.errors import SettingsError
from atelier.hardware.container import (
    Cgroup,
    choose_threads,
    host_memory,
    set_cpu_threads,
    usable_cpus,
)
from atelier.hardware.machine import DeviceManager
from atelier.settings import load_settings

GIB = 2**30


def test_without_an_accelerator_the_cpu_is_chosen_with_its_memory():
    device = DeviceManager(load_settings()).select()
    assert (device.kind, device.torch_device, device.torch) == ("cpu", "cpu", torch.device("cpu"))
    assert 0 < device.free_bytes <= device.total_bytes
    assert "CPUs" in device.name


def test_a_device_that_is_not_here_is_refused_with_those_that_are(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(
        SettingsError, match=r"cuda:3 is not here \(CUDA_VISIBLE_DEVICES=1\); allowed: auto, cpu"
    ):
        DeviceManager(load_settings(device="cuda:3")).select()


@pytest.fixture
def gpus(monkeypatch):
    """Lets a test say which GPUs there are: (name, major, minor, GiB)."""

    def install(*cards):
        kinds = [
            SimpleNamespace(name=n, major=a, minor=b, total_memory=g * GIB) for n, a, b, g in cards
        ]
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(kinds))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: kinds[index])
        monkeypatch.setattr(
            torch.cuda,
            "mem_get_info",
            lambda i: (kinds[i].total_memory // 2, kinds[i].total_memory),
        )

    return install


def test_the_largest_gpu_is_chosen_and_described(gpus):
    gpus(("Tesla T4", 7, 5, 16), ("NVIDIA L40S", 8, 9, 45), ("NVIDIA L40S", 8, 9, 45))
    device = DeviceManager(load_settings()).select()
    assert (device.torch_device, device.capability, device.bfloat16, device.fp8) == (
        "cuda:1",
        (8, 9),
        True,
        True,
    )
    assert device.free_bytes == 45 * GIB // 2
    assert [one.torch_device for one in DeviceManager(load_settings()).all()] == [
        "cuda:0",
        "cuda:1",
        "cuda:2",
        "cpu",
    ]


def test_a_named_gpu_is_taken_and_a_t4_has_no_bfloat16(gpus):
    gpus(("Tesla T4", 7, 5, 16), ("NVIDIA L40S", 8, 9, 45))
    device = DeviceManager(load_settings(device="cuda:0")).select()
    assert (device.name, device.bfloat16, device.fp8, device.mig) == (
        "Tesla T4",
        False,
        False,
        False,
    )
    assert DeviceManager(load_settings(device="cuda")).select().index == 0


def test_a_mig_slice_is_told_by_its_name_with_the_memory_of_the_slice(gpus):
    gpus(("NVIDIA H100 80GB HBM3 MIG 2g.20gb", 9, 0, 20))
    device = DeviceManager(load_settings()).select()
    assert device.mig and device.total_bytes == 20 * GIB


def cgroup(root, files, membership):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "membership").write_text(membership)
    return Cgroup(root, root / "membership")


def test_version_2_quota_and_memory_are_the_least_of_the_group_and_its_ancestors(tmp_path):
    files = {
        "pod/cpu.max": "150000 100000",
        "pod/box/cpu.max": "max 100000",
        "pod/memory.max": str(8 * GIB),
        "pod/memory.current": str(3 * GIB),
        "pod/memory.stat": f"anon 5\ninactive_file {GIB}",
        "pod/box/memory.max": "max",
        "pod/box/memory.current": "5",
    }
    group = cgroup(tmp_path, files, "0::/pod/box\n")
    assert group.cpu_quota() == 1.5
    assert group.memory() == (8 * GIB, 6 * GIB)


def test_version_1_quota_and_memory_are_read_from_their_controllers(tmp_path):
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "400000",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": str(4 * GIB),
        "memory/memory.usage_in_bytes": str(GIB),
        "memory/memory.stat": f"total_inactive_file {GIB // 2}",
    }
    group = cgroup(tmp_path, files, "5:cpu,cpuacct:/host/path\n4:memory:/host/path\n0::/\n")
    assert group.cpu_quota() == 4
    assert group.memory() == (4 * GIB, 3 * GIB + GIB // 2)


def test_no_limit_is_no_limit(tmp_path):
    files = {
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
        "cpu.max": "max 100000",
    }
    files |= {
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.usage_in_bytes": "5",
    }
    group = cgroup(tmp_path, files, "1:cpu:/\n4:memory:/\n0::/\n")
    assert group.cpu_quota() is None
    assert group.memory() is None


def test_the_container_limits_what_the_machine_has(tmp_path):
    files = {"cpu.max": "50000 100000", "memory.max": str(GIB), "memory.current": str(GIB // 4)}
    group = cgroup(tmp_path, files, "0::/\n")
    assert usable_cpus(group) == 0.5
    assert host_memory(group) == (GIB, GIB - GIB // 4)


def test_more_threads_are_taken_only_if_they_measure_faster():
    assert choose_threads(None, 8, lambda n: 1 / n)[0] == 8
    threads, reason = choose_threads(None, 2, lambda n: 1.0 if n == 1 else 9.0)
    assert (threads, reason) == (1, "2 of 2 usable CPUs took 9.00 of the time of one, measured")


def test_a_quota_below_two_and_an_explicit_number_are_not_measured():
    def never(threads):
        raise AssertionError

    assert choose_threads(None, 1.9, never) == (1, "1.9 CPUs usable")
    assert choose_threads(3, 1, never) == (3, "OMP_NUM_THREADS=3")


def test_torch_gets_the_number_and_child_processes_inherit_it(monkeypatch, caplog):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    caplog.set_level("INFO")
    try:
        assert set_cpu_threads(load_settings()) == 2
        assert torch.get_num_threads() == 2
        assert "CPU threads of one operation: 2 (OMP_NUM_THREADS=2)" in caplog.text
    finally:
        torch.set_num_threads(before)


@pytest.mark.alone
def test_the_measurement_is_short_and_ends_in_one_of_its_candidates(monkeypatch):
    import time

    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        start = time.perf_counter()
        assert set_cpu_threads(load_settings()) in {1, int(usable_cpus())}
        assert time.perf_counter() - start < 2, "four times 20 ms, with room for a busy machine"
    finally:
        torch.set_num_threads(before)
