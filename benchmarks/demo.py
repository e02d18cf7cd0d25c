"""The demo, seed by seed: KL to the teacher of student and control, and the seconds of the whole command.

    python -m benchmarks.demo --seeds 0 1 2 --folder runs/seeds

Writes `results/demo.json` with every number of each seed's table; a finished run in the folder is read, not repeated.
The wall time is of `tutelage demo` alone: installation is not in it, the download only where the cache lacks it.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import measure
from tutelage import reading
from tutelage.rundir import RunDirectory

LARGEST_KL, LARGEST_RATIO = 1.1, 0.8


def one(seed: int, folder: Path) -> dict[str, Any]:
    """Run the demo of one seed unless it is finished; its table and seconds."""
    run = RunDirectory(folder / f"seed-{seed}")
    wall_s = None
    if run.state() != "finished":
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "tutelage", "demo", "--run-dir", str(run.path), "--seed", str(seed)], check=True
        )
        wall_s = time.perf_counter() - started
    transfer = reading.read_json(run.evaluation / "transfer.json")
    held_out = transfer["sets"]["held_out"]["estimates"]
    kl = {name: held_out[name]["kl_to_teacher"]["value"] for name in ("student_before", "student", "control")}
    return {
        "seed": seed,
        "wall_s": wall_s,
        "kl_nats": kl,
        "ratio": kl["student"] / kl["control"],
        "summary": reading.read_json(run.finished_path),
        "sets": {name: part["estimates"] for name, part in transfer["sets"].items()},
        "costs": transfer["costs"],
    }


def main() -> None:
    """Run the seeds, write the results, and say whether every seed met the bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/seeds"))
    arguments = parser.parse_args()
    rows = [one(seed, arguments.folder) for seed in arguments.seeds]
    for row in rows:
        print(f"seed {row['seed']}: {row['kl_nats']}, ratio {row['ratio']:.3f}, wall {row['wall_s']}")
    met = all(row["kl_nats"]["student"] <= LARGEST_KL and row["ratio"] <= LARGEST_RATIO for row in rows)
    measure.write("demo", {"environment": measure.environment({"seeds": arguments.seeds}), "met": met, "seeds": rows})
    print(f"KL <= {LARGEST_KL} and ratio <= {LARGEST_RATIO} in every seed: {met}")


if __name__ == "__main__":
    main()
