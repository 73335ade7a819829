"""Data sets on Ray for tests, of blocks that begin where a test says."""

from itertools import pairwise

import pyarrow as pa


def dataset_of(ray, table, *cuts):
    """Make a data set of blocks that begin at the cuts."""
    bounds = [0, *cuts, table.num_rows]
    return ray.data.from_arrow([table.slice(a, b - a) for a, b in pairwise(bounds)])


def table_of(dataset):
    import ray

    return pa.concat_tables(ray.get(dataset.to_arrow_refs()))
