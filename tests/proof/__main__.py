"""Run every pipeline in small and write down what comes of it, or what differs from such a record.

`python -m tests.proof OUT.json` carries out the commands of `tests.proof.cases` in a state root of
their own (about five minutes on two cores). Written are hashes of exports, numbers of results and
reports, tags and metrics of registered versions, columns of tables: never times, paths or ids, and
no key of a stage, so that two records are equal wherever the results are.

`--against FILE` compares; exit code 1 where something differs or is gone. What is new is told and
is no difference. `record.json` beside this file holds the results since a block is computed once
while it is solved (cfd3080, in whose last digits they differ from before); `make proof` compares.

Floating point differs in its last bits between processors and releases of torch, and codes, hashes
and choices follow: against a record of another machine hashes and choices are left out, and
numbers may be 20 % apart. Tables, files, tags and metrics must be there all the same.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

# One thread, before torch is imported: sums are then taken in one order.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

from tests.proof.cases import CASES
from tests.proof.comparison import differences
from tests.proof.facts import facts_of, this_machine
from tests.proof.running import Workshop, workshop


def main() -> int:
    """Return the exit code: 0, or 1 where the record differs from the one given."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT.json", help="the record to write")
    parser.add_argument("--against", type=Path, metavar="FILE", help="a record to compare with")
    parser.add_argument("--only", metavar="A,B", help="these cases and what they build on")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="an empty folder to work in")
    options = parser.parse_args()
    before = json.loads(options.against.read_text()) if options.against else None
    with tempfile.TemporaryDirectory(prefix="normtweak-proof-") as folder:
        record = made((options.keep or Path(folder)).resolve(), wanted(options.only))
    options.out.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    if before is None:
        return 0
    if options.only:
        before["cases"] = {name: before["cases"][name] for name in record["cases"]}
    found, new = differences(before, record)
    for line in [*(f"new: {one}" for one in new), *found]:
        print(line)
    print(f"{len(found)} differences, {len(new)} new, in {len(record['cases'])} cases")
    return 1 if found else 0


def wanted(only: str | None) -> list[str]:
    """Return the names of the cases to run, in order, with those that they read."""
    if not only:
        return list(CASES)
    names = set(only.split(","))
    if unknown := names - CASES.keys():
        sys.exit(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    for name in reversed(CASES):  # a case reads only those before it
        if name in names:
            names |= CASES[name].reads
    return [name for name in CASES if name in names]


def made(folder: Path, names: list[str]) -> dict:
    """Carry out cases in a folder; return the record."""
    cases = {}
    with workshop(folder) as place:
        for name in names:
            cases[name] = carried_out(place, name)
    return {"machine": this_machine(), "cases": cases}


def carried_out(place: Workshop, name: str) -> dict:
    """Return the facts of one case."""
    code, result = place.run(name, CASES[name])
    expected = CASES[name].code
    if code != expected:
        print(f"{name}: exit code {code}, expected {expected}", file=sys.__stderr__)
    return {"exit code": code} | facts_of(result, place.folder)


if __name__ == "__main__":
    sys.exit(main())
