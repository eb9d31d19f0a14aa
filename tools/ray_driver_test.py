#!/usr/bin/env python3
"""Tests ray_driver.py on a Ray cluster of two nodes on this machine, one of which is killed while it works.

    cargo build && python tools/ray_driver_test.py target/debug

Needs Ray (`pip install ray`) and says so where there is none; installs nothing. Checks that nothing is lost and nothing is there
twice: what the shards make together has the bytes of a single run, for pictures and for sensitivities; that a bad input is not tried
again; and that running all shards a second time changes no file.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARDS = 6


def driver(address, command, shards=SHARDS):
    words = [sys.executable, ROOT / "tools/ray_driver.py", "--address", address, "--shards", shards, "--", *command]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    print(*(line for line in done.stdout.splitlines() if " of " in line and "raylet" not in line), sep="\n")
    return done


def kill_one(cluster, node, begun, killed):
    """Kills the node once `begun` says that a shard is at work on each."""
    while not begun():
        time.sleep(0.01)
    cluster.remove_node(node, allow_graceful=False)
    killed.append(time.monotonic())


def with_kill(cluster, address, command, begun):
    """Runs the driver on two nodes of which one dies on the way."""
    node, killed = cluster.add_node(num_cpus=1), []
    cluster.wait_for_nodes()
    thread = threading.Thread(target=kill_one, args=(cluster, node, begun, killed))
    thread.start()
    done = driver(address, command)
    end = time.monotonic()
    thread.join()
    assert done.returncode == 0, done.stderr
    # What the killed node had done was gone on with.
    assert "going on with" in done.stdout, done.stdout
    assert killed[0] < end, "the node was killed after all was done"
    print(f"a node was killed {end - killed[0]:.1f} s before the end")


def at_work(folder, unfinished, done):
    """Whether two shards are unfinished and have some of their work done."""
    shards = list(folder.glob(unfinished))
    return len(shards) == 2 and all(any(shard.glob(done)) for shard in shards)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pictures(cluster, address, programs, folder):
    aquatint, shards, single = programs / "aquatint", folder / "shards", folder / "single"
    job = [aquatint, "sample", ROOT / "models/glyphs-w4a8.aqt", "--n-imgs", "90", "-s", "50", "-b", "4", "--seed", "7"]
    subprocess.run([*job, "-o", single, "-q"], check=True)
    begun = lambda: at_work(shards, "*.partial", "*.safetensors")
    command = [*job, "--shard", "{shard}/{shards}", "-o", shards]
    with_kill(cluster, address, command, begun)
    names = sorted(path.name for path in shards.iterdir())
    assert names == [f"shard-{k:05}-of-{SHARDS:05}.safetensors" for k in range(SHARDS)], names
    subprocess.run([aquatint, "merge", shards, "-o", folder / "merged.safetensors", "-q"], check=True)
    whole = (single / "shard-00000-of-00001.safetensors").read_bytes()
    assert (folder / "merged.safetensors").read_bytes() == whole, "other bytes than those of a single run"
    before = files(shards)
    again = driver(address, command)
    assert again.returncode == 0 and again.stdout.count("was done before") == SHARDS, again.stdout
    assert files(shards) == before, "a second run changed files"
    bad = driver(address, [*job, "--sampler", "none-such", "--shard", "{shard}/{shards}", "-o", folder / "bad"], shards=2)
    assert bad.returncode == 2 and bad.stdout.count("--sampler") == 2, bad.stdout


def sensitivities(cluster, address, programs, folder):
    packer = programs / "packer"
    job = [packer, "sensitivity", ROOT / "models/glyphs", "--n", "16", "--at", "9,19,29,39", "--choices", "w2a8,w4a8"]
    subprocess.run([*job, "-q", "-o", folder / "whole.json"], check=True)
    begun = lambda: at_work(folder, "part-*.partial", "probe-*.json")
    with_kill(cluster, address, [*job, "--shard", "{shard}/{shards}", "-o", folder / "part-{shard}.json"], begun)
    merged = [folder / f"part-{shard}.json" for shard in range(SHARDS)]
    subprocess.run([packer, "sensitivity", "-q", "--merge", *merged, "-o", folder / "merged.json"], check=True)
    assert (folder / "merged.json").read_bytes() == (folder / "whole.json").read_bytes(), "other bytes than those of a whole"
    assert json.loads((folder / "merged.json").read_text())["units"]


def main():
    try:
        import ray
        from ray.cluster_utils import Cluster
    except ImportError:
        print("skipped: there is no Ray here")
        return
    programs = Path(sys.argv[1]).resolve()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # The node that holds the cluster together computes nothing; of those that do, one dies.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.add_node(num_cpus=1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for check in (pictures, sensitivities):
                own = Path(folder, check.__name__)
                own.mkdir()
                check(cluster, cluster.address, programs, own)
                print(f"{check.__name__}: as a single run")
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
