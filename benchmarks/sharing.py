"""How processes that start the same extraction together share it, and how much is done twice.

Each process opens the store, waits until all are ready, and extracts. All of them end with complete
features; the rows that each of them wrote are added up. On a machine whose cores one process keeps
busy, more of them gain little time: what is asked is that they lose none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import MOBILENETV2, ROOT, machine, write_fashion

IMAGES = 4_000
# Blocks of 128 rows, and together with the pooled layer units of 1024.
LAYERS = (["block_6_expand_relu"], ["block_6_expand_relu", "out_relu:avg"])


def extract(folder: str, store: str, start: str, threads: str, *layers: str) -> None:
    import tensorflow as tf

    import featurestore as fs

    tf.config.threading.set_intra_op_parallelism_threads(int(threads))
    data = fs.Dataset.open(folder)
    backbone = fs.Backbone.from_application("mobilenetv2", weights=MOBILENETV2, input_size=64)
    opened = fs.FeatureStore(store, create=True)
    print("ready", flush=True)
    while not os.path.exists(start):
        time.sleep(0.01)
    done = fs.extract(data, backbone, layers, opened)
    assert not any(each.group.missing() for each in done.values())
    rows = [report.rows_computed for report in done.reports.values()]
    print(json.dumps({"samples": len(data), "rows": rows, "seconds": done.seconds}))


def together(
    count: int, layers: list[str], folder: str, cache: str
) -> tuple[list[list[int]], int, float]:
    """Return the rows that each wrote, by layer; the samples; the seconds until all ended."""
    with tempfile.TemporaryDirectory(dir=ROOT / "data") as place:
        command = [sys.executable, "-m", "benchmarks.sharing", folder, f"{place}/store"]
        command += [f"{place}/start", str(max(1, (os.cpu_count() or 1) // count)), *layers]
        environment = {**os.environ, "FEATURESTORE_CACHE": cache, "TF_CPP_MIN_LOG_LEVEL": "3"}
        with open(f"{place}/stderr", "w") as notes:
            processes = [
                subprocess.Popen(
                    command,
                    env=environment,
                    cwd=ROOT,
                    stdout=subprocess.PIPE,
                    stderr=notes,
                    text=True,
                )
                for _ in range(count)
            ]
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        Path(place, "start").touch()
        printed = [process.communicate()[0] for process in processes]
        if any(process.returncode for process in processes):
            sys.exit(Path(place, "stderr").read_text()[-3000:])
    found = [json.loads(text) for text in printed]
    seconds = max(each["seconds"] for each in found)
    return [each["rows"] for each in found], found[0]["samples"], seconds


def main() -> None:
    print(f"`python -m benchmarks.sharing` — {machine()}\n")
    print("| layers | processes | rows written by each | done twice | seconds | load |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        write_fashion(Path(folder), IMAGES)
        for layers in LAYERS:
            for count in (1, 2, 4, 8):
                load = os.getloadavg()[0]
                rows, samples, seconds = together(count, layers, folder, cache)
                twice = sum(map(sum, rows)) / (len(layers) * samples) - 1
                shares = ", ".join(str(each[0]) for each in rows)
                print(
                    f"| {', '.join(layers)} | {count} | {shares} | {twice:.1%} | {seconds:.1f} "
                    f"| {load:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    extract(*sys.argv[1:]) if len(sys.argv) > 1 else main()
