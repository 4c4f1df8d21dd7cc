"""A process of a group that says which it is, and then waits, ends, or fails."""

import os
import sys
import time

from tasks.server.watch import require_parent, watch_arguments, watch_pipe


def main() -> None:
    parser = watch_arguments(main.__doc__)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--fails", type=int, default=-1)
    parser.add_argument("--waits", action="store_true")
    options = parser.parse_args()
    require_parent(options)
    watch_pipe(options.alive)
    rank = int(os.environ["RANK"])
    place = os.path.join(options.folder, os.environ["RANK"])
    with open(f"{place}.part", "w") as file:
        names = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
        file.write(" ".join([str(os.getpid()), *(os.environ[name] for name in names)]))
    os.rename(f"{place}.part", place)
    if rank == options.fails:
        sys.exit("no room for the thing")
    if options.waits:
        time.sleep(300)


if __name__ == "__main__":
    main()
