"""The calls of the wire contract that need no gRPC."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flerm_client.registry.calls import FIRST_PAGE_SIZE, PAGE_SIZE, RegistryCalls
from flerm_core.errors import DataLoss
from flerm_proto.v1 import registry_pb2 as pb


class Listing(RegistryCalls):
    """A registry with families "0" to "4", `size` on a page."""

    def __init__(self, size: int = 3) -> None:
        self.size = size
        self.asked: list[tuple[int, str]] = []

    def unary(self, method, request, *, seconds=15.0):
        self.asked.append((request.page_size, request.page_token))
        start = int(request.page_token or 0)
        names = [str(at) for at in range(5)][start : start + self.size]
        token = str(start + self.size) if start + self.size < 5 else ""
        return pb.ListFamiliesResponse(
            families=[pb.Family(name=name) for name in names], next_page_token=token
        )

    def stream(self, method, request):
        raise NotImplementedError

    def close(self) -> None: ...


def test_pages_are_fetched_one_by_one_until_the_last():
    listing = Listing()
    pages = listing.pages("ListFamilies", pb.ListFamiliesRequest())
    assert [each.name for each in next(pages).families] == ["0", "1", "2"]
    assert listing.asked == [(FIRST_PAGE_SIZE, "")]
    assert [each.name for page in pages for each in page.families] == ["3", "4"]
    assert listing.asked == [(FIRST_PAGE_SIZE, ""), (PAGE_SIZE, "3")]


def test_a_listing_that_comes_back_to_the_same_page_is_left():
    listing = Listing(0)
    with pytest.raises(DataLoss, match=r"^ListFamilies: .* would have no end"):
        list(listing.pages("ListFamilies", pb.ListFamiliesRequest()))
    assert len(listing.asked) == 2


class Early(Listing):
    """A registry that begins a call when it is asked ahead."""

    def ahead(self, method, request):
        answer = self.unary(method, request)
        return lambda: answer


def test_pages_after_the_second_are_asked_for_while_the_one_before_is_read():
    listing = Early(2)
    pages = listing.pages("ListFamilies", pb.ListFamiliesRequest())
    next(pages)
    assert len(listing.asked) == 1  # many callers stop here
    assert [each.name for each in next(pages).families] == ["2", "3"]
    assert listing.asked[-1] == (PAGE_SIZE, "4")
    assert [each.name for page in pages for each in page.families] == ["4"]
    assert len(listing.asked) == 3


class Endless(Listing):
    """A registry that sends `message` after a header of three rows, again and again."""

    def __init__(self, *steps: int) -> None:
        super().__init__()
        self.sent = 0
        self.message = pb.TrajectoryChunk(rows=pb.TrajectoryRows(steps=steps))

    def stream(self, method, request) -> Iterator[pb.TrajectoryChunk]:
        yield pb.TrajectoryChunk(header=pb.TrajectoryHeader(rows=3))
        while True:
            self.sent += 1
            yield self.message


@pytest.mark.parametrize(("steps", "most"), [((1, 2), 2), ((), 1)])
def test_a_registry_that_sends_rows_without_end_is_left(steps: tuple[int, ...], most: int):
    registry = Endless(*steps)
    with pytest.raises(DataLoss, match="of 3 rows came"):
        list(registry.trajectory(pb.GetTrajectoryRequest(recording_id="a")))
    assert registry.sent == most
