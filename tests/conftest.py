"""For every test: no hub, no network, and the shared data where they are there."""

import os

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"  # before anything imports huggingface_hub

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("amends", deadline=None, max_examples=50)
hypothesis.settings.load_profile("amends")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of public data beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data" / "tofu").is_dir():
        pytest.skip("needs ../shared/data/tofu")
    return folder


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Refuse every connection that leaves the machine."""

    def guard(connect: Any) -> Any:
        def guarded(self: socket.socket, address: Any) -> Any:
            host = address[0] if isinstance(address, tuple) else "localhost"  # a path: a Unix socket
            if self.family != socket.AF_UNIX and host not in ("localhost", "::1") and not host.startswith("127."):
                raise OSError(f"a test tried to reach {address}: tests run without network")
            return connect(self, address)

        return guarded

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, guard(getattr(socket.socket, name)))
        yield
