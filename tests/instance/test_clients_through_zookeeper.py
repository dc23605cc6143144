"""Clients that are given zk://… find whoever takes part there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from changefeed import open_instance, open_publisher, open_subscription
from changefeed.testing.zookeeper_ensemble import ZookeeperEnsemble

pytestmark = pytest.mark.zookeeper


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ZookeeperEnsemble(1) as ensemble:
        yield ensemble.url("/clients")


async def test_a_publisher_and_a_subscription_find_the_instances(url: str) -> None:
    """Both are given the ensemble's address only; a real instance on a real port serves them."""
    async with open_instance(["vmapi"], log="memory:", coordinator=url, listen="127.0.0.1:0", name="only"):
        async with open_publisher("vmapi", url) as publisher:
            receipt = await publisher.publish("vm", "1", "create")
        async with open_subscription("vmapi", url, start="beginning") as subscription:
            event = await anext(aiter(subscription))
            state = subscription.state

    assert event.position == receipt.last
    assert state.instance == "only"
