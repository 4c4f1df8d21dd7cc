"""A three-stage flow on the real engine, run in this process or as a program that can be killed.

    python -m tests.tasks.flow_under_test ROOT [--start N] [--pause STAGE] [--burst N]

Each stage records its execution and publishes a file; the key of the next depends on its content.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect import Flow

STAGES = ("first", "second", "third")


def define_flow() -> "Flow":
    """Import the engine and return the flow; not at import, so that the environment comes first."""
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect.utilities.annotations import quote

    from flows.pipeline.operated import operated
    from tasks.engine import events
    from tasks.engine.artifacts import content_hash, publish
    from tasks.engine.caching import StageSerializer, stage_key, stage_policy
    from tests.tasks.stage_results import StageResult

    @task(
        cache_policy=stage_policy(),
        persist_result=True,
        result_serializer=StageSerializer(),
        task_run_name="{stage}",
    )
    def run_stage(key: str, stage: str, value: int, context: Any) -> StageResult:
        events.record("executed", stage=stage)
        context["on_stage"](stage)
        time.sleep(context["seconds"])
        file = publish("numbers", key, lambda path: path.write_bytes(b"%d\n" % value * 100), "txt")
        return StageResult(stage=stage, value=value, file=file, seconds=time.time())

    @task(cache_policy=NO_CACHE)
    def do_nothing(number: int) -> None:
        pass

    @flow(name="under-test")
    @operated
    def three_stages(
        start: int, pause: str | None = None, seconds: float = 0, burst: int = 0
    ) -> list[int]:
        def on_stage(stage: str) -> None:
            if stage == pause:
                time.sleep(120)

        values, parents = [], []
        for number, stage in enumerate(STAGES):
            key = stage_key(
                stage,
                parents=parents,
                inputs={"start": start},
                sources=["normtweak_core.randomness"],
                device="cpu",
                threads=2,
            )
            context = {"on_stage": on_stage, "seconds": seconds}
            result = run_stage(key, stage, start + number, quote(context))
            values.append(result.value)
            parents = [content_hash(result)]
        for number in range(burst):
            do_nothing(number)
        return values

    return three_stages


def main() -> None:
    from tasks.engine.environment import prepare_environment
    from tasks.engine.runs import mark_dead_runs, own_flow_runs
    from tasks.server.api import api_for_this_run

    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--start", type=int, required=True)
    parser.add_argument("--pause")
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--burst", type=int, default=0)
    wanted = vars(parser.parse_args())
    root = prepare_environment(wanted.pop("root"))
    with api_for_this_run(root) as url:
        print("api", url, flush=True)
        print("marked", *mark_dead_runs(root), flush=True)
        with own_flow_runs(root):
            values = define_flow()(**wanted)
    print("values", *values, flush=True)
    print("torch imported", "torch" in sys.modules, flush=True)


if __name__ == "__main__":
    main()
