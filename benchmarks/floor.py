"""`python -m benchmarks.floor`: imagination beside the plain transformer of `cluster.bench.imagination_floor`.

The target is 0.9 of it, at the sizes that other implementations were measured at.
"""

import sys

from cluster.main import main

if __name__ == "__main__":
    sys.exit(main(["bench", "imagination", "--preset", "common", "--batches", "2", "16", *sys.argv[1:]]))
