import subprocess
import sys

import pytest

from normtweak_core.memory import available_memory, give_back, group_headrooms

LIMITS_ADDRESSES = """
import resource
import psutil
from normtweak_core.memory import available_memory
limit = psutil.Process().memory_info().vms + 50 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(available_memory("cpu"))
"""

LIMITS_WRITTEN = LIMITS_ADDRESSES.replace("RLIMIT_AS", "RLIMIT_DATA").replace("vms", "data")
# Small pieces, every second of which is freed: the allocator keeps the pages of the others' heap.
LEAVES_HOLES = """
import gc
import psutil
from normtweak_core.memory import give_back

class Circle:
    def __init__(self):
        self.held, self.again = [bytearray(100_000) for _ in range(1000)], self

gc.disable()
rss = psutil.Process().memory_info
before = rss().rss
Circle()
kept = [bytearray(100) for _ in range(10)]
held = rss().rss
give_back()
print((held - before) // 2**20, (rss().rss - before) // 2**20)
"""
LEAVES_ANOTHER = """
Circle()
held = rss().rss
give_back()
print((held - before) // 2**20, (rss().rss - before) // 2**20)
"""


def group(folder, files, **values):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(files, values.values(), strict=True):
        (folder / name).write_text(f"{value}\n")


NEW = ("memory.max", "memory.current", "memory.stat")
OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")


def test_every_group_above_a_process_limits_it(tmp_path):
    membership = tmp_path / "cgroup"
    membership.write_text("0::/outer/middle/inner\n")
    root = tmp_path / "fs"
    group(root / "outer", NEW, most=1000, used=700, stat="anon 500\ninactive_file 150")
    group(root / "outer/middle", NEW, most="max", used=600, stat="inactive_file 1")
    group(root / "outer/middle/inner", NEW, most=900, used=500, stat="inactive_file 0")
    assert group_headrooms(root, membership) == [400, 450]


def test_the_first_version_of_groups_has_other_names(tmp_path):
    membership = tmp_path / "cgroup"
    membership.write_text("9:name=systemd:/x\n4:cpu,memory:/x/job\n3:cpuset:/x\n0::/\n")
    root = tmp_path / "fs"
    group(root / "memory/x", OLD, most=2**62, used=10, stat="total_inactive_file 4")
    group(
        root / "memory/x/job", OLD, most=100, used=30, stat="inactive_file 9\ntotal_inactive_file 5"
    )
    group(root / "x", NEW, most=1, used=0, stat="inactive_file 0")  # of no group of this process
    assert group_headrooms(root, membership) == [75, 2**62 - 6]


def test_a_container_may_show_only_its_own_group(tmp_path):
    membership = tmp_path / "cgroup"
    membership.write_text("0::/not/shown/here\n")
    group(tmp_path / "fs", NEW, most=50, used=20, stat="inactive_file 0")
    assert group_headrooms(tmp_path / "fs", membership) == [30]


@pytest.mark.parametrize("listed", ["", "3:cpuset:/\n"])
def test_without_a_group_of_memory_nothing_is_limited(tmp_path, listed):
    membership = tmp_path / "cgroup"
    assert group_headrooms(tmp_path, membership) == []
    membership.write_text(listed)
    assert group_headrooms(tmp_path, membership) == []


def test_a_limit_of_the_address_space_is_obeyed():
    run = subprocess.run(
        [sys.executable, "-c", LIMITS_ADDRESSES], capture_output=True, text=True, check=True
    )
    assert 40 * 2**20 < int(run.stdout) <= 50 * 2**20 < available_memory("cpu")


def test_a_limit_of_what_a_process_may_write_is_a_limit():
    found = subprocess.run(
        [sys.executable, "-c", LIMITS_WRITTEN], capture_output=True, text=True, check=True
    )
    assert int(found.stdout) == pytest.approx(50 * 2**20, rel=0.2)


def test_what_nothing_refers_to_goes_back_to_the_machine():
    found = subprocess.run(
        [sys.executable, "-c", LEAVES_HOLES], capture_output=True, text=True, check=True
    )
    held, left = map(int, found.stdout.split())
    assert held > 90
    assert left < 10
    give_back()


def test_circles_of_later_stages_are_freed_as_well():
    found = subprocess.run(
        [sys.executable, "-c", f"{LEAVES_HOLES}\n{LEAVES_ANOTHER}"],
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = (tuple(map(int, line.split())) for line in found.stdout.splitlines())
    assert second[0] > 90
    assert second[1] < first[1] + 10
