"""The calls of the wire contract, whatever carries them. `Connection` carries them over gRPC."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from flerm_client.registry.address import RegistryAddress
from flerm_core.errors import DataLoss, Unreachable
from flerm_proto.v1 import registry_pb2 as pb

UNARY_SECONDS = 15.0
APPEND_SECONDS = 30.0
# The first page is small: many callers stop there. The others are the largest that a server gives.
FIRST_PAGE_SIZE, PAGE_SIZE = 100, 1000

# What one Append request holds at most. A server takes more; small requests are retried cheaply.
APPEND_ROWS = 500
APPEND_BYTES = 1 << 20


class RegistryCalls(ABC):
    """Calls to the registry server at `address`. Requests and answers are protobuf messages.

    Every call raises errors of `flerm_core.errors`.
    """

    address: RegistryAddress

    @abstractmethod
    def unary(self, method: str, request: Any, *, seconds: float = UNARY_SECONDS) -> Any:
        """The answer of the unary method `method`.

        `seconds`: how long one try may take.
        """

    def ahead(self, method: str, request: Any) -> Callable[[], Any]:
        """What gives the answer of the unary method `method`.

        A carrier that can asks at once, so that the registry works while its caller does something
        else. `request` must stay as it is until the answer is taken.
        """
        return lambda: self.unary(method, request)

    @abstractmethod
    def stream(self, method: str, request: Any) -> Iterator[Any]:
        """The answers of the streaming method `method`."""

    def pages(self, method: str, request: Any) -> Iterator[Any]:
        """The answers of the listing method `method`, page by page.

        `request` must have the fields `page_size` and `page_token`; both are set here. From the
        second page on, the next one is asked for while the caller reads the one before.
        """
        request.page_size = FIRST_PAGE_SIZE
        page = self.unary(method, request)
        yield page
        request.page_size = PAGE_SIZE
        following = self._page_after(page, method, request)
        while following is not None:
            page = following()
            following = self._page_after(page, method, request)
            yield page

    def _page_after(self, page: Any, method: str, request: Any) -> Callable[[], Any] | None:
        if not page.next_page_token:
            return None
        if page.next_page_token == request.page_token:
            raise DataLoss(
                f"{method}: the registry answered a page with this page's own token, so that the "
                "listing would have no end"
            )
        request.page_token = page.next_page_token
        return self.ahead(method, request)

    def trajectory(self, request: pb.GetTrajectoryRequest) -> Iterator[pb.TrajectoryChunk]:
        """The answers of GetTrajectory: the header, then all rows.

        Where the connection breaks after some rows, the call is made again for those that follow.
        Raises `DataLoss` where rows come before a header, none come in a message that should have
        some, or more come than the header says: a registry could otherwise send them without end.
        """
        rest = pb.GetTrajectoryRequest()
        rest.CopyFrom(request)
        received, rows = 0, -1
        while received != rows:
            before = received
            try:
                for chunk in self.stream("GetTrajectory", rest):
                    if chunk.HasField("header"):
                        if rows >= 0:
                            continue
                        rows = chunk.header.rows
                        # Rows that are recorded meanwhile are not among those announced.
                        if not rest.HasField("last_step"):
                            rest.last_step = chunk.header.recording.last_step
                    else:
                        received += len(chunk.rows.steps)
                        if not chunk.rows.steps or received > rows:
                            raise DataLoss(
                                f"recording {request.recording_id}: {received} of {rows} rows came "
                                f"with a message of {len(chunk.rows.steps)}"
                            )
                        rest.first_step = chunk.rows.steps[-1] + 1
                    yield chunk
                return
            except Unreachable:
                if received == before or rest.max_points:
                    raise

    @abstractmethod
    def close(self) -> None:
        """Closes the connection. The next call would open another."""
