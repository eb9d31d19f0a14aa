#!/usr/bin/env python3
"""Runs a command once for each shard on a Ray cluster, in place of {shard} and {shards} their numbers.

    python tools/ray_driver.py --shards 500 --cpus 4 -- aquatint sample m.aqt --n-imgs 50000 --shard {shard}/{shards} -o DIR
    python tools/ray_driver.py --shards 16 -- packer sensitivity MODEL --shard {shard}/{shards} -o {shard}.json

The command must be found, and its files be seen, on every machine, under the same paths. A shard whose machine dies or whose command
fails is run again, up to --retries times; one that says that its input is bad, by ending with 2, is not. Shards write files whole and
leave alone what is done, so that running one twice does no harm, and running all of them again does what is missing.

Ends with 0 if all shards are done, 2 if the input is bad, 1 if others failed.
"""

import argparse
import os
import signal
import subprocess
import sys

import ray

# How the programs end where trying again would not help.
BAD_INPUT = 2


class Failed(Exception):
    """A command that may succeed the next time."""


def end_with_parent():
    """Lets the command end with the worker that started it: what is made twice is the same, but takes time twice."""
    if sys.platform == "linux":
        import ctypes

        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@ray.remote
def run(command, threads, folder):
    """What the command says, its notes and its last line, and whether its input was good."""
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    # Where Ray itself was started by a scheduler, what that says is not of this shard.
    for name in ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"):
        environment.pop(name, None)
    # A worker's thread, which the command is to end with, lives as long as its process.
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        preexec_fn=end_with_parent,
    )
    said = "; ".join([*done.stderr.splitlines(), *done.stdout.splitlines()[-1:]])
    if done.returncode not in (0, BAD_INPUT):
        raise Failed(f"ended with {done.returncode}: {said}")
    return said, done.returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, required=True)
    parser.add_argument("--cpus", type=int, default=1, help="of a shard, which are its threads (default: %(default)s)")
    parser.add_argument("--gpus", type=float, default=0, help="of a shard (default: %(default)s)")
    parser.add_argument("--retries", type=int, default=3, help="of a shard (default: %(default)s)")
    parser.add_argument("--address", help="of the cluster; auto for the one of this machine (default: a new one here)")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    if not any("{shard}" in word for word in args.command):
        parser.error("the command must say {shard} somewhere, or all shards would be one")

    ray.init(address=args.address, log_to_driver=False, logging_level="ERROR")
    task = run.options(
        num_cpus=args.cpus, num_gpus=args.gpus, max_retries=args.retries, retry_exceptions=[Failed]
    )
    shards = {}
    for shard in range(args.shards):
        words = [word.replace("{shards}", str(args.shards)).replace("{shard}", str(shard)) for word in args.command]
        shards[task.remote(words, args.cpus, os.getcwd())] = shard
    waiting, ends = list(shards), [0]
    while waiting:
        [done], waiting = ray.wait(waiting, num_returns=1)
        try:
            said, good = ray.get(done)
            ends.append(0 if good else BAD_INPUT)
        except (ray.exceptions.RayError, Failed) as error:
            said = str(error).strip().splitlines()[-1]
            ends.append(1)
        print(f"{args.shards - len(waiting)} of {args.shards}: shard {shards[done]}: {said}", flush=True)
    sys.exit(max(ends))


if __name__ == "__main__":
    main()
