"""Every benchmark, with results in benchmarks/results/."""

import subprocess
import sys

for name in ("egno", "clofnet", "segnn", "implicit_steerable_kernels", "simulator", "liquid"):
    subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--json", f"benchmarks/results/{name}.json"], check=True
    )
