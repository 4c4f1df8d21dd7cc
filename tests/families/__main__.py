"""Takes tiny random models of many families the whole way, in each format, and writes the matrix.

    python -m tests.families [NAME ...] [--out families.json]

Goes on where it was ended: what stands in the file of results is not tried again; remove the file,
or name families, to try them anew. With every family tried, docs/formats.md gets the matrix.
"""

import argparse
import json
from pathlib import Path

from tests.benchmarks.results import REPOSITORY, split_page
from tests.families.models import GROUPS
from tests.families.page import MARK, matrix
from tests.families.running import CASES, attempt

PAGE = REPOSITORY / "docs/formats.md"


def main() -> None:
    """Try what is left to try."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="families to try anew; none: all that are left")
    parser.add_argument("--out", type=Path, default=REPOSITORY / ".families.json")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text()) if options.out.is_file() else {}
    for name in options.names:
        rows.pop(name, None)
    known = {name: write for families in GROUPS.values() for name, write in families.items()}
    for name in options.names or known:
        for column, case in CASES.items():
            if column in rows.setdefault(name, {}):
                continue
            rows[name][column] = row = attempt(known[name], case)
            options.out.write_text(json.dumps(rows, indent=1) + "\n")
            told = row.get("refused") or row.get("failed") or f"{row['difference']:.2g}"
            print(f"{name}, {case.title} ({row['seconds']} s): {told}", flush=True)
    if known.keys() <= rows.keys():
        before, _, after = split_page(PAGE.read_text(), MARK)
        PAGE.write_text(f"{before}\n{matrix(rows)}{after}")


if __name__ == "__main__":
    main()
