"""Questions to Prefect's API from beside a run, which go on without it where it does not answer."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


def sync_client() -> "SyncPrefectClient":
    """Return a client of the API that this process uses."""
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def no_answer() -> tuple[type[Exception], ...]:
    """Return what is raised where the API does not answer, or not as Prefect's does."""
    import httpx
    from prefect.exceptions import PrefectException

    # ValueError: something else answers, such as a proxy.
    return httpx.HTTPError, PrefectException, ValueError
