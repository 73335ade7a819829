"""What tests of curation share: Ray, started once."""

import pytest


@pytest.fixture(scope="session")
def ray():
    """Two workers in this machine."""
    import os

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    import ray.data

    ray.init(
        num_cpus=2, object_store_memory=200_000_000, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    yield ray
    ray.shutdown()
