#!/usr/bin/env python3
"""How the time of a model grows on a CPU with batch, pixels, steps and threads, beside OpenVINO where it can.

    python tools/bench_growth.py FILE.aqt [--beside MODEL_DIR] [--axis NAME]... [--threads 2] [--calls 3]
        [--json OUT.json] [--svg OUT.svg]

Batch, pixels, threads: seconds of a denoiser's call (`aquatint bench`, the median), pixels those of a square's side.
Steps: seconds of a whole run of one image without guidance, from the file to the PNG: opening, encoding, steps, decoding.

With --beside, a directory whose networks `bench_peers.py MODEL_DIR --quantize` has made: the same calls of OpenVINO's W8A8 network,
by turns, the network brought to each batch and size; and the seconds that compiling it takes. What it cannot do is left out.
Everything is timed in a process of its own. Needs openvino for --beside, nothing otherwise.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

import bench_peers
import charts

AXES = {"batch": [1, 2, 4, 8], "pixels": [256, 384, 512, 768, 1024], "threads": [1, 2, 4], "steps": [1, 5, 10, 20]}


def ours(args, axis, place):
    threads = str(place if axis == "threads" else args.threads)
    if axis == "steps":
        begin = time.perf_counter()
        picture = ["-g", "1", "--steps", str(place), "--quiet", "--threads", threads, "-o", "/tmp/aquatint.png"]
        bench_peers.run([str(args.program), "run", args.file, "-p", "a red cat", *picture])
        return time.perf_counter() - begin
    command = ["bench", args.file, "--json", "--no-step", "--no-encode", "--no-decode"]
    command += ["--repeat", str(args.calls), "--threads", threads]
    command += ["--batch-size", str(place if axis == "batch" else 1)]
    command += ["--size", str(place)] if axis == "pixels" else []
    output, _ = bench_peers.run([str(args.program), *command])
    return json.loads(output)["denoiser"]["median"]


def turn(args):
    """In a process of its own: the network for a place on an axis, compiled and called; prints seconds of both."""
    import numpy
    import openvino

    axis, place = args.turn, args.place
    core = openvino.Core()
    network = core.read_model(bench_peers.kept(args.beside, "denoiser", 1))
    arrays = [x.numpy() for x in bench_peers.inputs(args.beside, "denoiser", place if axis == "batch" else 1)]
    if axis == "pixels":
        arrays[0] = numpy.random.default_rng(1).standard_normal((1, arrays[0].shape[1], place // 8, place // 8), numpy.float32)
    network.reshape({port.any_name: list(x.shape) for port, x in zip(network.inputs, arrays)})
    threads = place if axis == "threads" else args.threads
    begin = time.perf_counter()
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(network, "CPU", config).create_infer_request()
    compiled = time.perf_counter() - begin
    times = []
    for _ in range(args.calls + 1):
        begin = time.perf_counter()
        result = request.infer(arrays)[0]
        times.append(time.perf_counter() - begin)
    assert result.shape == arrays[0].shape and numpy.isfinite(result).all(), result.shape
    print(json.dumps({"call": statistics.median(times[1:]), "compile": compiled}))


def theirs(args, axis, place):
    if not args.beside or axis == "steps":
        return None
    command = [sys.executable, __file__, args.file, "--beside", args.beside, "--threads", str(args.threads), "--calls", str(args.calls)]
    child = subprocess.run([*command, "--turn", axis, "--place", str(place)], capture_output=True, text=True)
    if child.returncode != 0:
        print(f"OpenVINO has none for {axis} {place}: {child.stderr.strip().splitlines()[-1][:200]}", flush=True)
        return None
    return json.loads(child.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE.aqt")
    parser.add_argument("--beside", metavar="MODEL_DIR")
    parser.add_argument("--axis", action="append", choices=AXES, help="of the four [default: all]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=3, help="timed at each place, after one to warm up (default: %(default)s)")
    parser.add_argument("--program", type=pathlib.Path, default=pathlib.Path("target/release/aquatint"), help="(default: %(default)s)")
    parser.add_argument("--json", type=pathlib.Path, help="write everything that was measured")
    parser.add_argument("--svg", type=pathlib.Path, help="draw it")
    parser.add_argument("--turn", choices=AXES, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turn:
        return turn(args)
    where = bench_peers.machine(args.threads)
    print(where)
    names = {
        "batch": "denoiser call, seconds, by batch",
        "pixels": "denoiser call, seconds, by pixels of a side",
        "threads": "denoiser call, seconds, by threads",
        "steps": "one image from file to PNG, seconds, by steps",
    }
    panels, compiled = [], []
    for axis in args.axis or AXES:
        places = AXES[axis]
        own, other = [], []
        for place in places:
            own.append(ours(args, axis, place))
            peer = theirs(args, axis, place)
            other.append(peer and peer["call"])
            compiled += [peer["compile"]] if peer else []
            print(f"{axis} {place}: {own[-1]:.3g} s" + (f", OpenVINO {other[-1]:.3g} s" if peer else ""), flush=True)
        systems = {"Aquatint": own, **({"OpenVINO W8A8": other} if any(other) else {})}
        panels.append((names[axis], places, systems))
        print("| " + " | ".join([axis, *map(str, places)]) + " |")
        for name, times in systems.items():
            print("| " + " | ".join([name, *("" if t is None else f"{t:.3g}" for t in times)]) + " |")
    if compiled:
        print(f"compiling took OpenVINO {min(compiled):.1f} to {max(compiled):.1f} s")
    if args.json:
        args.json.write_text(json.dumps({"machine": where, "panels": panels, "compile": compiled}, indent=1))
    if args.svg:
        args.svg.write_text(charts.growth(panels, where))


if __name__ == "__main__":
    main()
