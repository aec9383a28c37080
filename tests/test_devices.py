"""Random streams, precision, threads, and running out of memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_config import TINY
from torch.utils.checkpoint import checkpoint

from lmlab import devices, lab, loading, parallel, planning, ranks, trainer
from lmlab.adapters.base import BaseAdapter
from lmlab.errors import OutOfMemory, RunError, UsageError
from lmlab.events import Event
from lmlab.sampling import write_samples

CPU = torch.device("cpu")


def test_a_stream_and_its_caller_do_not_move_each_other() -> None:
    alone = devices.RandomStream(devices.seeded_random_state(3, CPU), CPU)
    with alone:
        expected = torch.rand(6)
    torch.manual_seed(11)
    outside = torch.rand(6)
    torch.manual_seed(11)
    stream, drawn, between = devices.RandomStream(devices.seeded_random_state(3, CPU), CPU), [], []
    for _ in range(3):
        between.append(torch.rand(2))
        with stream:
            drawn.append(torch.rand(2))
    assert torch.equal(torch.cat(drawn), expected)
    assert torch.equal(torch.cat(between), outside)


def test_two_streams_at_once_do_not_move_each_other() -> None:
    one, other = (devices.RandomStream(devices.seeded_random_state(seed, CPU), CPU) for seed in (1, 2))
    together = []
    for _ in range(2):
        for stream in (one, other):
            with stream:
                together.append(torch.rand(3))
    for seed, pieces in ((1, together[::2]), (2, together[1::2])):
        with devices.RandomStream(devices.seeded_random_state(seed, CPU), CPU):
            assert torch.equal(torch.cat(pieces), torch.rand(6))


def test_what_was_interrupted_is_drawn_again() -> None:
    stream = devices.RandomStream(devices.seeded_random_state(5, CPU), CPU)
    torch.manual_seed(1)
    outside = torch.get_rng_state()
    first: list[torch.Tensor] = []
    with pytest.raises(KeyboardInterrupt), stream:  # noqa: PT012
        first.append(torch.rand(4))
        raise KeyboardInterrupt
    assert torch.equal(torch.get_rng_state(), outside)
    with stream:
        assert torch.equal(torch.rand(4), first[0])


def test_the_state_of_a_seed_is_that_of_manual_seed_and_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(8)
    before, moved = torch.get_rng_state(), []
    with monkeypatch.context() as other_devices:
        for module in (torch.cuda, torch.mps, torch.xpu):
            name = "manual_seed" if module is torch.mps else "manual_seed_all"
            other_devices.setattr(module, name, moved.append)
        state = devices.seeded_random_state(123, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert moved == []
    torch.manual_seed(123)
    assert torch.equal(torch.get_rng_state(), state["cpu"])


def test_auto_precision_follows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda fast=fast: {"amx_bf16": fast})
        assert devices.resolve_precision("auto", CPU) == expected
        assert devices.resolve_precision("fp32", CPU) == "fp32"
        assert devices.resolve_precision("bf16", CPU) == "bf16"
    assert devices.has_fast_bf16(torch.device("mps")) is False


def test_instructions_for_bf16_count_where_they_are_measured_to_be_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    for in_bf16, expected in ((4e11, "bf16"), (5e10, "fp32")):
        rates = {"bf16": in_bf16, "fp32": 1e11}
        monkeypatch.setattr(devices, "peak_flops", lambda device, precision, threads, rates=rates: rates[precision])
        assert devices.resolve_precision("auto", CPU) == expected


def test_bf16_that_is_the_slower_one_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, tiny_yaml: Path, corpus: Path
) -> None:
    rates = {"bf16": 1e10, "fp32": 4e10}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False})
    monkeypatch.setattr(devices, "peak_flops", lambda device, precision, threads: rates[precision])
    monkeypatch.setattr(devices, "pick_device", lambda: CPU)
    message = "products in bf16 take 4.0 times as long as in fp32 on this processor; precision: fp32 is faster here"

    def warned(**settings: object) -> list[str]:
        return list(planning.check_config(tiny_yaml, data=corpus, **settings).warnings)

    assert [m for m in warned(precision="bf16") if "bf16" in m] == [message]
    assert message not in warned(precision="fp32") + warned(precision="bf16", world_size=2, device_name="H100")
    told: list[Event] = []
    lab.run(tiny_yaml, corpus, runs_dir=tiny_yaml.parent, listeners=[told.append], precision="bf16", max_steps=1)
    assert message in [event["message"] for event in told if event["event"] == "warning"]
    rates["fp32"] = 1.2e10
    assert not any("bf16" in m for m in warned(precision="bf16"))


def test_autocast_computes_in_the_precision_that_is_named() -> None:
    a = torch.ones(4, 4)
    with devices.autocast("bf16", CPU):
        assert (a @ a).dtype == torch.bfloat16
    with devices.autocast("fp32", CPU):
        assert (a @ a).dtype == torch.float32


def test_a_few_vectors_are_multiplied_without_onednn_which_is_back_afterwards_whatever_happens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(300, 700, generator=generator).bfloat16()
    for rows, without in ((1, True), (2, True), (3, False)):
        x_NI = torch.randn(rows, 700, generator=generator).bfloat16()
        with devices.products_of(x_NI):
            assert torch.backends.mkldnn.enabled is not without
            y_NO = torch.mm(x_NI, weight_OI.T)
        exact_NO = x_NI.double() @ weight_OI.double().T
        assert (y_NO.double() - exact_NO).norm() < 4e-3 * exact_NO.norm()
        assert torch.backends.mkldnn.enabled
    with pytest.raises(KeyError), devices.products_of(torch.ones(1)):
        raise KeyError
    assert torch.backends.mkldnn.enabled
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    with devices.products_of(torch.ones(1)):
        pass
    assert not torch.backends.mkldnn.enabled, "whoever switched it off finds it so"


def test_peak_is_measured_once_and_moves_no_random_number() -> None:
    torch.manual_seed(2)
    before = torch.get_rng_state()
    peak = devices.peak_flops(CPU, "fp32", torch.get_num_threads())
    assert 1e8 < peak < 1e15
    assert devices.peak_flops(CPU, "fp32", torch.get_num_threads()) == peak
    assert torch.equal(torch.get_rng_state(), before)


def test_the_peak_on_a_processor_is_of_products_as_a_step_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only products move: some processors take ten times as long in bf16 where no matrix is transposed."""
    clock, asked = [0.0], []
    product = torch.Tensor.__matmul__

    def slow(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        asked.append(len(left))
        transposed = not (left.is_contiguous() and right.is_contiguous())
        clock[0] += 2 * len(left) ** 3 / (1e10 if transposed else 1e9)
        return product(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", slow)
    monkeypatch.setattr(devices.time, "perf_counter", lambda: clock[0])
    devices.peak_flops.cache_clear()
    try:
        assert devices.peak_flops(CPU, "bf16", 1) == pytest.approx(1e10)
    finally:
        devices.peak_flops.cache_clear()
    assert set(asked) == {256}, "larger ones take a slow processor seconds"


def test_what_is_computed_again_on_mps_draws_the_same_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No such device is here: the processor's random numbers stand in for its own, which torch leaves alone."""
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.get_rng_state())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: torch.set_rng_state(state))
    assert devices.recomputation(CPU) == {"use_reentrant": False}
    again = devices.recomputation(torch.device("mps"))
    x = torch.ones(1000, requires_grad=True)

    def dropped(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(x * x, 0.5).square()

    found = []
    for compute in (dropped, lambda x: checkpoint(dropped, x, preserve_rng_state=False, **again)):
        torch.manual_seed(1)
        (gradient,) = torch.autograd.grad(compute(x).sum(), x)
        found.append((gradient, torch.get_rng_state()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_one_of_several_processes_computes_where_it_can_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gloo serves processors alone: on Apple's machines several processes train there. None is here: it is pretended."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.pick_device().type == "mps"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert devices.pick_device().type == "cpu"


GROUPS = {  # what /proc/self/cgroup says, files below /sys/fs/cgroup, and the limit
    "container": ("0::/", {"memory.max": "4096"}, 4096),
    "job": (
        "0::/slurm/job_7/step_0/task_0",
        {"slurm/job_7/memory.max": "5000", "slurm/job_7/step_0/memory.max": "max"},
        5000,
    ),
    "within": ("0::/a/b", {"memory.max": "3000", "a/memory.max": "2000", "a/b/memory.max": "4000"}, 2000),
    "container of version 1": (
        "9:cpu,cpuacct:/docker/4b\n7:memory:/docker/4b",
        {"memory/memory.limit_in_bytes": "4096"},
        4096,
    ),
    "job of version 1": (
        "7:memory:/slurm/job_7\n0::/",
        {"memory/slurm/job_7/memory.limit_in_bytes": "5000", "memory/memory.limit_in_bytes": "9223372036854771712"},
        5000,
    ),
    "another's": ("0::/a", {"b/memory.max": "4096"}, None),
    "none": ("0::/user.slice", {"user.slice/memory.max": "max"}, None),
}


def put_into_groups(own: str, files: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process be in control groups: what it is told of its own, and the limits that stand in their files."""
    monkeypatch.setattr(devices, "CGROUPS", folder / "groups")
    monkeypatch.setattr(devices, "OWN_CGROUP", folder / "cgroup")
    (folder / "cgroup").write_text(own + "\n")
    for name, text in files.items():
        path = folder / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


@pytest.mark.parametrize("kind", GROUPS)
def test_memory_is_that_of_the_tightest_control_group(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, files, limit = GROUPS[kind]
    machine = devices.memory_of(CPU)
    put_into_groups(own, files, tmp_path, monkeypatch)
    assert devices.memory_of(CPU) == (limit or machine)


GRANTS = {  # as above, with the processors that are granted
    "container": ("0::/", {"cpu.max": "200000 100000"}, 2),
    "within": ("0::/a/b", {"cpu.max": "max 100000", "a/cpu.max": "150000 100000", "a/b/cpu.max": "500000 100000"}, 2),
    "container of version 1": (
        "7:memory:/docker/4b\n4:cpu,cpuacct:/docker/4b",
        {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000", "memory/cpu.max": "300000 100000"},
        1,
    ),
    "no limit of version 1": ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 5),
    "more than there are": ("0::/", {"cpu.max": "900000 100000"}, 5),
    "none": ("0::/user.slice", {"user.slice/cpu.max": "max 100000"}, 5),
}


@pytest.mark.parametrize("kind", GRANTS)
def test_threads_are_no_more_than_the_processors_that_are_granted(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: Path
) -> None:
    own, files, granted = GRANTS[kind]
    put_into_groups(own, files, tmp_path, monkeypatch)
    with devices.threads_kept():
        torch.set_num_threads(5)  # as on a machine of five
        monkeypatch.setenv("OMP_NUM_THREADS", "5")
        assert lab.build(TINY, corpus, runs_dir=tmp_path).state()["threads"] == 5, "the user has chosen"
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert lab.build(TINY, corpus, runs_dir=tmp_path).state()["threads"] == granted


@pytest.mark.parametrize("rank", ["0", "1"])
def test_more_processes_than_gpus_are_refused_with_both_numbers(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def set_device(number: int) -> None:
        raise torch.AcceleratorError("CUDA error: invalid device ordinal")

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    expected = "2 processes on this machine cannot share 1 GPU: start at most 1, .* LMLAB_DEVICE=cpu"
    with pytest.raises(UsageError, match=expected):
        ranks.join()


def test_a_device_can_be_named_in_place_of_the_fastest(monkeypatch: pytest.MonkeyPatch, corpus: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert devices.pick_device().type == "cuda"
    monkeypatch.setenv("LMLAB_DEVICE", "cpu")
    assert lab.build(TINY, corpus).device == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name in ("cuda", "mps"):
        monkeypatch.setenv("LMLAB_DEVICE", name)
        assert devices.pick_device().type == name
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name, expected in (("mps", "LMLAB_DEVICE=mps, and torch finds no such"), ("gpu", "write cpu, cuda or mps")):
        monkeypatch.setenv("LMLAB_DEVICE", name)
        with pytest.raises(UsageError, match=expected):
            lab.build(TINY, corpus)


def test_out_of_memory_is_an_error_with_advice() -> None:
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate")):
        expected = pytest.raises(RunError, match="out of memory: lower batch_size")
        with expected, devices.out_of_memory_as_error("lower batch_size"):
            raise error
    with pytest.raises(RunError), devices.out_of_memory_as_error("lower batch_size"):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="another"), devices.out_of_memory_as_error("lower batch_size"):
        raise RuntimeError("another")


@pytest.mark.parametrize(
    "said",
    [
        "MPS backend out of memory (MPS allocated: 17.36 GB, other allocations: 613.56 MB, max allowed: 18.13 GB).",
        "Invalid buffer size: 12.00 GiB",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_every_library_has_its_words_for_too_little_memory(said: str) -> None:
    with pytest.raises(RunError, match="out of memory: lower batch_size"):  # noqa: SIM117
        with devices.out_of_memory_as_error("lower batch_size"):
            raise RuntimeError(said)


TOO_LITTLE = [
    (loading, "Transformer", lambda where: lab.build(TINY, "storybook:3000", runs_dir=where)),
    (parallel, "replicate", lambda where: lab.build(TINY, "storybook:3000", runs_dir=where)),  # DDP's buckets
    (trainer, "load_optimizer_tensors", lambda where: lab.resume("r", max_steps=8, runs_dir=where, listeners=[])),
    (BaseAdapter, "to", lambda where: write_samples("r", runs_dir=where)),
    (BaseAdapter, "generate", lambda where: write_samples("r", runs_dir=where)),
]


@pytest.mark.parametrize(("owner", "name", "use"), TOO_LITTLE, ids=[name for _, name, _ in TOO_LITTLE])
def test_too_little_memory_outside_of_a_step_says_what_makes_room(
    owner: Any, name: str, use: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.run(TINY, "storybook:3000", run_name="r", runs_dir=tmp_path, listeners=[])

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.95 GiB.")

    monkeypatch.setattr(owner, name, full)
    with pytest.raises(OutOfMemory, match="close what else takes the device's memory"):
        use(tmp_path)


def test_a_full_device_is_measured_by_smaller_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """No such device is here: the meta device stands in for it, on which nothing takes memory."""
    make, asked = torch.full, []

    def full(shape: tuple[int, int], *arguments: Any, **keywords: Any) -> torch.Tensor:
        asked.append(shape[0])
        if shape[0] > 1024:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 MiB.")
        return make(shape, *arguments, **keywords)

    monkeypatch.setattr(torch, "full", full)
    assert devices.peak_flops(torch.device("meta"), "fp32", 1) > 0
    assert asked == [4096, 1024]


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GB200", None),
        ("Tesla T4", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("GRID A100-10C", None),
        ("NVIDIA L40S-48Q", None),
    ],
)
def test_an_accelerator_is_known_by_its_whole_name(name: str, teraflops: int | None) -> None:
    known = devices.data_sheet(name)
    assert (None if known is None else known[0]) == teraflops
