"""Questions to Prefect's API from beside a run, which go on without it where it does not answer."""

from typing import TYPE_CHECKING

from normtweak_core.lazy import lazy

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

exceptions = lazy("prefect.exceptions")
httpx = lazy("httpx")
orchestration = lazy("prefect.client.orchestration")


def sync_client() -> "SyncPrefectClient":
    """Return a client of the API that this process uses."""
    return orchestration.get_client(sync_client=True)


def no_answer() -> tuple[type[Exception], ...]:
    """Return what is raised where the API does not answer, or not as Prefect's does."""
    # ValueError: something else answers, such as a proxy.
    return httpx.HTTPError, exceptions.PrefectException, ValueError
