#!/usr/bin/env python3
"""Times a model's denoiser and decoder on a CPU in Aquatint and its peers, by turns in one run, and tells the memory that
each takes.

    python tools/bench_peers.py MODEL_DIR [--aquatint FILE.aqt] [--sdcpp FILE.gguf] [--peer NAME]... [--part NAME]...
        [--batch-size 1] [--rounds 3] [--threads 2]

MODEL_DIR is a directory of Stable Diffusion, DiT or PixArt in diffusers' layout, such as `packer synth sd15 -o DIR` makes; one call
has samples of the model's own size, and the longest prompt. Peers: PyTorch (f32), OpenVINO (W8A8 by NNCF), and, if their files are
given, Aquatint (`target/release/aquatint`) and stable-diffusion.cpp (`sd-cli` on the path). Every turn is a process of its own: it
loads what it needs, makes one call to warm up, then the timed ones. Memory is the most that was resident in a process that
made a picture: text encoder, denoiser, decoder; PyTorch's and OpenVINO's leave the text encoder out.

NNCF calibrates on a single random sample, which is enough for timing and for nothing else. Its result is kept beside
MODEL_DIR. Results of PyTorch's and OpenVINO's calls are compared with each other before anything is timed. Needs torch,
diffusers, openvino and nncf.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

PARTS = ["denoiser", "vae"]
CALLS = 3
TOKENS = {"UNet2DConditionModel": 77, "PixArtTransformer2DModel": 120}


def denoiser(directory):
    """Folder, class and configuration of the denoiser."""
    folder = next(name for name in ("unet", "transformer") if (pathlib.Path(directory) / name).exists())
    config = json.loads((pathlib.Path(directory) / folder / "config.json").read_text())
    return folder, config["_class_name"], config


def inputs(directory, part, batch):
    """Random inputs of the model's own size, in the order of the part's arguments."""
    import torch

    torch.manual_seed(1)
    _, kind, config = denoiser(directory)
    size = (config["in_channels"], config["sample_size"], config["sample_size"])
    if part == "vae":
        return (torch.randn(1, *size),)
    condition = {
        "UNet2DConditionModel": lambda: torch.randn(batch, TOKENS[kind], config["cross_attention_dim"]),
        "PixArtTransformer2DModel": lambda: torch.randn(batch, TOKENS[kind], config["caption_channels"]),
        "DiTTransformer2DModel": lambda: torch.arange(batch) * 207,
    }[kind]
    return torch.randn(batch, *size), torch.full((batch,), 500.0), condition()


def in_torch(directory, part, batch, threads):
    import diffusers
    import torch

    folder, kind, _ = denoiser(directory)

    class Denoiser(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = getattr(diffusers, kind).from_pretrained(directory, subfolder=folder).float()

        def forward(self, sample, timestep, condition):
            if kind != "PixArtTransformer2DModel":
                return self.inner(sample, timestep, condition, return_dict=False)[0]
            none = {"resolution": None, "aspect_ratio": None}
            return self.inner(sample, condition, timestep, added_cond_kwargs=none, return_dict=False)[0]

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = diffusers.AutoencoderKL.from_pretrained(directory, subfolder="vae").float()

        def forward(self, latents):
            return self.vae.decode(latents, return_dict=False)[0]

    torch.set_num_threads(threads)
    model = (Denoiser if part == "denoiser" else Decoder)().eval()
    arguments = inputs(directory, part, batch)

    def call():
        with torch.inference_mode():
            return model(*arguments).numpy()

    return call, model


def kept(directory, part, batch):
    return f"{directory.rstrip('/')}-openvino-{part}-{batch}.xml"


def quantize(directory, parts, batch, threads):
    """Writes OpenVINO's W8A8 networks beside the model, unless they are there."""
    import nncf
    import openvino

    for part in parts:
        if os.path.exists(kept(directory, part, batch)):
            continue
        _, model = in_torch(directory, part, batch, threads)
        arguments = inputs(directory, part, batch)
        arrays = [x.numpy() for x in arguments]
        converted = openvino.convert_model(model, example_input=arguments)
        converted.reshape({port.any_name: list(x.shape) for port, x in zip(converted.inputs, arrays)})
        kind = nncf.ModelType.TRANSFORMER if part == "denoiser" else None
        quantized = nncf.quantize(
            converted, nncf.Dataset([tuple(arrays)]), subset_size=1, model_type=kind,
            preset=nncf.QuantizationPreset.MIXED,
        )
        openvino.save_model(quantized, kept(directory, part, batch))


def in_openvino(directory, part, batch, threads):
    import openvino

    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(kept(directory, part, batch), "CPU", config).create_infer_request()
    arrays = [x.numpy() for x in inputs(directory, part, batch)]
    return lambda: request.infer(arrays)[0], request


PYTHON = {"torch": in_torch, "openvino": in_openvino}


def turn(peer, args):
    """A process of its own: all parts loaded, as for a picture, then called. Prints the times of its calls."""
    calls = {part: PYTHON[peer](args.model, part, args.batch_size, args.threads) for part in args.part}
    for part, (call, _) in calls.items():
        result = call()
        if args.save:
            result.tofile(f"{args.save}.{part}")
        times = []
        for _ in range(CALLS):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        print(json.dumps({"part": part, "times": times}), flush=True)


def run(command):
    """Output and most resident bytes of a process."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, f"{' '.join(command)}:\n{output[-2000:]}"
    return output, usage.ru_maxrss * 1024


def again(args):
    """This script in a process of its own, for the same model, parts and sizes."""
    parts = [word for part in args.part for word in ("--part", part)]
    return [sys.executable, __file__, args.model, "--threads", str(args.threads), "--batch-size", str(args.batch_size), *parts]


def python_turn(peer, args, save=None):
    command = [*again(args), "--turn", peer]
    output, memory = run(command + (["--save", save] if save else []))
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"part"')]
    return {line["part"]: line["times"] for line in lines}, memory


def aquatint_turn(args):
    program, threads = str(args.program), ["--threads", str(args.threads)]
    less = ["--no-encode"] if "vae" in args.part else ["--no-encode", "--no-decode"]
    size = ["--batch-size", str(args.batch_size), "--repeat", str(CALLS)]
    output, _ = run([program, "bench", args.aquatint, *size, "--json", *less, *threads])
    report = json.loads(output)
    names = {"denoiser": "denoiser", "vae": "decoder"}
    times = {part: [report[names[part]]["median"]] for part in args.part}
    what = ["--class-labels", "207"] if denoiser(args.model)[1].startswith("DiT") else ["-p", "a red cat"]
    guided = ["-g", "1"] if args.batch_size == 1 else []
    picture = ["run", args.aquatint, *what, *guided, "--steps", "1", "--quiet", "-o", "/tmp/aquatint.png"]
    return times, run([program, *picture, *threads])[1]


def sdcpp_turn(args):
    picture = ["-p", "a red cat", "--cfg-scale", "1", "--steps", str(CALLS), "-H", "512", "-W", "512", "-o", "/tmp/sdcpp.png"]
    output, memory = run(["sd-cli", "-m", args.sdcpp, *picture, "--sampling-method", "euler", "-t", str(args.threads), "-v"])
    seconds = {
        part: float(re.search(rf"{what} completed, taking ([\d.]+)s", output)[1])
        for part, what in [("denoiser", "sampling"), ("vae", "decode_first_stage")]
    }
    return {"denoiser": [seconds["denoiser"] / CALLS], "vae": [seconds["vae"]]}, memory


def compare(args):
    """How far OpenVINO's results are from PyTorch's: a bench of wrong results is none."""
    import numpy

    folder = pathlib.Path(args.model).resolve().parent
    results = {}
    for peer in ["torch", "openvino"]:
        python_turn(peer, args, str(folder / peer))
        for part in args.part:
            file = folder / f"{peer}.{part}"
            results[peer, part] = numpy.fromfile(file, numpy.float32)
            file.unlink()
    for part in args.part:
        want, got = results["torch", part], results["openvino", part]
        error = float(((got - want) ** 2).mean() ** 0.5 / (want**2).mean() ** 0.5)
        assert error < 0.5, f"OpenVINO's {part} is {error:.2f} off; nothing was timed"
        print(f"OpenVINO's {part} is {error:.3f} off PyTorch's")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--aquatint", metavar="FILE.aqt")
    parser.add_argument("--sdcpp", metavar="FILE.gguf")
    parser.add_argument("--peer", action="append", choices=PYTHON, help="of the two in Python [default: both]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", action="append", choices=PARTS, help="of the two [default: both]")
    parser.add_argument("--batch-size", type=int, default=1, help="samples of a denoiser call (default: %(default)s)")
    parser.add_argument("--program", type=pathlib.Path, default=pathlib.Path("target/release/aquatint"), help="(default: %(default)s)")
    parser.add_argument("--turn", choices=PYTHON, help=argparse.SUPPRESS)
    parser.add_argument("--quantize", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--save", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.part = args.part or PARTS
    if args.quantize:
        return quantize(args.model, args.part, args.batch_size, args.threads)
    if args.turn:
        return turn(args.turn, args)

    peers = args.peer or list(PYTHON)
    turns = {}
    if args.aquatint:
        turns["aquatint"] = lambda: aquatint_turn(args)
    for peer in peers:
        turns[peer] = lambda peer=peer: python_turn(peer, args)
    if args.sdcpp:
        turns["stable-diffusion.cpp"] = lambda: sdcpp_turn(args)
    if "openvino" in peers:
        # In a process of its own: what a parent held when it started a child counts as the child's.
        run([*again(args), "--quantize"])
        compare(args)
    seen = {name: ({part: [] for part in args.part}, []) for name in turns}
    for _ in range(args.rounds):
        for name, one in turns.items():
            times, memory = one()
            for part in args.part:
                seen[name][0][part].append(statistics.median(times[part]))
            seen[name][1].append(memory)
            print(name, {part: round(seen[name][0][part][-1], 3) for part in args.part}, f"{memory / 1e9:.2f} GB", flush=True)
    for name, (times, memory) in seen.items():
        spans = ", ".join(f"{part} {min(times[part]):.2f} to {max(times[part]):.2f} s" for part in args.part)
        print(f"{name}: {spans}; {max(memory) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
