"""Two processes (gloo) share a training: FSDP2, and checkpoints of torch.distributed.checkpoint."""

import pytest

from normtweak_core.training.shared_checkpoint import shared_checkpoints
from tests.core.training.two_processes import CASES, STOP, facts_of, make_model, make_trainer, run

DAMAGED = "lora"  # the case whose newest checkpoint is altered before it goes on


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process came to; then what two did, when they began, and when they went on."""
    folder = tmp_path_factory.mktemp("two")
    source = make_model(folder / "model")
    alone = {case: facts_of(make_trainer(case, source, folder / f"alone-{case}")) for case in CASES}
    begun = run(source, folder, CASES, again=False)
    newest, before = shared_checkpoints(folder / f"stopped-{DAMAGED}")
    assert (newest.name, before.name) == (f"step-{STOP:08d}", f"step-{STOP - 1:08d}")
    share = newest / "__1_0.distcp"
    data = bytearray(share.read_bytes())
    data[len(data) // 2] ^= 1
    share.write_bytes(data)
    return folder, alone, begun, run(source, folder, CASES, again=True)


pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_end_in_the_same_bytes_each_time_and_whether_stopped_or_not(found, case):
    _, _, begun, again = found
    for facts in (*begun, *again):
        assert facts[case]["sha256"] == begun[0][case]["sha256"]
    for facts in again:
        assert facts[case]["resumed"]["sha256"] == begun[0][case]["sha256"]


@pytest.mark.parametrize("case", CASES)
def test_they_learn_what_one_process_learns(found, case):
    _, alone, begun, _ = found
    one, two = alone[case], begun[0][case]
    assert two["losses"][0] == pytest.approx(one["losses"][0], rel=1e-5)
    # Adam's first steps are as long as the rate says: a sign that rounding turns counts.
    assert two["losses"] == pytest.approx(one["losses"], rel=5e-3)
    assert two["held_out"] == pytest.approx(one["held_out"], rel=5e-3)
    assert two["best"] == one["best"]


@pytest.mark.parametrize("case", CASES)
def test_each_holds_its_share_of_both_models(found, case):
    _, alone, begun, _ = found
    for model in range(2):
        whole = alone[case]["sizes"][model][1]
        held = [facts[case]["sizes"][model][0] for facts in begun]
        assert all(facts[case]["sizes"][model][1] == whole for facts in begun)
        assert sum(held) == whole
        assert max(held) < 0.55 * whole


def test_they_go_on_from_the_newest_checkpoint_that_is_whole(found):
    for facts in found[3]:
        assert {case: facts[case]["resumed"]["first"] for case in CASES} == {
            case: STOP if case == DAMAGED else STOP + 1 for case in CASES
        }
