"""Several tests wait for a peer that does not answer a close: shortly, as what they show does not depend on it."""

import pytest


@pytest.fixture(autouse=True)
def short_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("changefeed.transport.websocket.CLOSE_S", 0.2)
