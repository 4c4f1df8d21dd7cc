"""Blocks that real processes share: the same export for 1, 2 and 4, also after one was killed."""

import os
import signal

import psutil
import pytest

from flows.checks.machine import FIXED_OF_A_PROCESS, model_shape
from flows.checks.memory import memory_bytes
from flows.commands.failures import failure
from flows.recipes.quantize import Recipe
from normtweak_core.errors import InputError
from normtweak_core.model.source import num_processes
from tasks.engine.environment import FOLDERS, default_variables
from tasks.server.ranks import RankError, peak_of_ranks
from tasks.stages.shared_blocks import MODULE, SharedBlocks
from tests.flows.stage_bodies import Bodies
from tests.flows.stage_keys import changed
from tests.flows.test_recipe_results import quantization
from tests.flows.tiny_model import recipe_values, variables_of, write_project

pytestmark = pytest.mark.timeout(300)
REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    write_project(folder)
    with variables_of(folder / "state") as root:
        for name in FOLDERS:
            (root / name).mkdir(parents=True, exist_ok=True)
        os.environ |= default_variables(root)
        os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": REPOSITORY}
        yield folder


def values(project, devices):
    text = {"source": "random", "samples": 80, "length": 256}  # 5 micro-batches to train on
    found = recipe_values(project) | {"devices": devices, "calibration": text}
    found = changed(found, "final_tune.enabled", False)
    return changed(found, "quantization.group_size", 32)


def exported(project, devices, stored):
    return quantization(values(project, devices), "export")(Bodies(stored))["export"]


def others() -> list[psutil.Process]:
    return [one for one in psutil.Process().children(recursive=True) if MODULE in one.cmdline()]


@pytest.fixture(scope="module")
def alone(project):
    return exported(project, 1, {}).export_sha256


def test_any_number_of_processes_writes_the_same_bytes(project, alone, monkeypatch):
    seen, begin = [], SharedBlocks.begin

    def counted(self, index, streams):
        found = begin(self, index, streams)
        seen.append(len(others()))
        return found

    monkeypatch.setattr(SharedBlocks, "begin", counted)
    for devices in (2, 4) if "NORMTWEAK_ALL_RANKS" in os.environ else (4,):
        seen.clear()
        assert exported(project, devices, {}).export_sha256 == alone
        assert seen == [devices - 1] * 2
        assert others() == []
    assert peak_of_ranks() > 100 << 20


def test_a_killed_process_ends_the_run_and_the_same_run_goes_on(project, alone, monkeypatch):
    stored, begin = {}, SharedBlocks.begin

    def killing(self, index, streams):
        found = begin(self, index, streams)
        if index == 1:
            others()[0].send_signal(signal.SIGKILL)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(SharedBlocks, "begin", killing)
        with pytest.raises(RankError) as caught:
            exported(project, 2, stored)
    assert failure(caught.value).startswith(
        "process 2 of 2 that compute together was ended by SIGKILL (as the system does where "
        "memory runs out), and the others with it; finished stages are kept, and the same command "
        "goes on from there"
    )
    assert others() == []
    finished = [key for key in stored if key.startswith("block-")]
    assert len(finished) == 1
    assert exported(project, 2, stored).export_sha256 == alone


@pytest.mark.parametrize(
    ("devices", "device", "wanted", "gpus", "found"),
    [
        ("auto", "cpu", "auto", 0, 1),
        (4, "cpu", "cpu", 0, 4),
        ("auto", "cuda:0", "auto", 4, 4),
        ("auto", "cuda:0", "cuda", 16, 8),
        ("auto", "cuda:1", "cuda:1", 4, 1),
        (3, "cuda:1", "cuda:1", 4, 3),
    ],
)
def test_auto_is_the_number_of_gpus(devices, device, wanted, gpus, found, monkeypatch):
    monkeypatch.setattr("normtweak_core.model.source._num_cuda_devices", lambda: gpus)
    assert num_processes(devices, device, wanted) == found


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("normtweak_core.model.source._num_cuda_devices", lambda: 2)
    message = "devices must be at most the number of GPUs from the first one on; found 4, and torch"
    with pytest.raises(InputError, match=message):
        num_processes(4, "cuda:0", "auto")


@pytest.mark.parametrize("devices", [0, 9, "two"])
def test_a_number_of_processes_that_cannot_be_is_refused(project, devices):
    message = f"devices must be auto or a number of processes from 1 to 8; found {devices!r}"
    with pytest.raises(InputError, match=message):
        Recipe.parse(values(project, devices))


def test_each_further_process_counts_its_memory_and_what_it_holds_of_the_model(project):
    shape = model_shape(project / "model")
    one, two, four = (
        memory_bytes(Recipe.parse(values(project, devices)), shape, 256) for devices in (1, 2, 4)
    )
    outside = 4 * (shape.parameters - shape.linear_weights)
    block = 3 * 4 * (shape.linear_weights // 2)
    each = two["blocks"] - one["blocks"]
    assert each > FIXED_OF_A_PROCESS + outside + block + 5 * 4 * 128**2
    assert [two["blocks"] - one["blocks"], four["blocks"] - one["blocks"]] == [each, 3 * each]
    assert {name: size for name, size in one.items() if name != "blocks"} == {
        name: size for name, size in four.items() if name != "blocks"
    }
