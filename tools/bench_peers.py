#!/usr/bin/env python3
"""Times a model's denoiser and decoder on a CPU in Aquatint and its peers, by turns in one run, and tells the memory that
each takes.

    python tools/bench_peers.py MODEL_DIR [--aquatint [NAME=]FILE.aqt]... [--sdcpp FILE.gguf] [--peer NAME]... [--part NAME]...
        [--batch-size 1] [--rounds 3] [--threads 2] [--json OUT.json] [--svg OUT.svg]

MODEL_DIR is a directory of Stable Diffusion, DiT or PixArt in diffusers' layout, such as `packer synth sd15 -o DIR` makes; one call
has samples of the model's own size, and the longest prompt. Peers: PyTorch (torch: f32; torch-bf16), OpenVINO (openvino: W8A8
by NNCF; openvino-int8-weights: weights of 8 bits, float activations), and, if their files are given, Aquatint
(`target/release/aquatint`), any number of files, and stable-diffusion.cpp (`sd-cli` on the path). Every turn is a process of its
own: it loads what it needs, makes one call to warm up, then the timed ones. Memory is the most that was resident in a process
that made a picture: text encoder, denoiser, decoder; PyTorch's and OpenVINO's leave the text encoder out.

Printed are the machine, medians of turns with their range, and medians of the ratios to OpenVINO's W8A8 turn of the same round, as
a table for a README; --svg draws a bar per system, and time against the size of the weights.

NNCF calibrates on a single random sample, which is enough for timing and for nothing else. Its results are kept beside
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

import charts

PARTS = ["denoiser", "vae"]
# A decoder takes many times as long as a denoiser's call, and varies less.
CALLS = {"denoiser": 3, "vae": 1}
# What others are compared with.
REFERENCE = "openvino"
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


def in_torch(directory, part, batch, threads, dtype="float32"):
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
    dtype = getattr(torch, dtype)
    model = (Denoiser if part == "denoiser" else Decoder)().eval().to(dtype)
    arguments = [x.to(dtype) if x.is_floating_point() else x for x in inputs(directory, part, batch)]

    def call():
        with torch.inference_mode():
            return model(*arguments).float().numpy()

    return call, model


def kept(directory, part, batch, peer="openvino"):
    return f"{directory.rstrip('/')}-{peer}-{part}-{batch}.xml"


def quantize(directory, parts, batch, threads, peers):
    """Writes OpenVINO's networks beside the model, unless they are there."""
    import nncf
    import openvino

    for part in parts:
        missing = [peer for peer in peers if peer in OPENVINO and not os.path.exists(kept(directory, part, batch, peer))]
        if not missing:
            continue
        _, model = in_torch(directory, part, batch, threads)
        arguments = inputs(directory, part, batch)
        arrays = [x.numpy() for x in arguments]
        for peer in missing:
            network = openvino.convert_model(model, example_input=arguments)
            network.reshape({port.any_name: list(x.shape) for port, x in zip(network.inputs, arrays)})
            if peer == "openvino":
                kind = nncf.ModelType.TRANSFORMER if part == "denoiser" else None
                network = nncf.quantize(
                    network, nncf.Dataset([tuple(arrays)]), subset_size=1, model_type=kind,
                    preset=nncf.QuantizationPreset.MIXED,
                )
            else:
                network = nncf.compress_weights(network, mode=nncf.CompressWeightsMode.INT8_ASYM)
            openvino.save_model(network, kept(directory, part, batch, peer))


def in_openvino(directory, part, batch, threads, peer):
    import openvino

    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(kept(directory, part, batch, peer), "CPU", config).create_infer_request()
    arrays = [x.numpy() for x in inputs(directory, part, batch)]
    return lambda: request.infer(arrays)[0], request


OPENVINO = ["openvino", "openvino-int8-weights"]
PYTHON = {
    "torch": in_torch,
    "torch-bf16": lambda *where: in_torch(*where, dtype="bfloat16"),
    **{peer: lambda *where, peer=peer: in_openvino(*where, peer) for peer in OPENVINO},
}


def turn(peer, args):
    """A process of its own: all parts loaded, as for a picture, then called. Prints the times of its calls."""
    calls = {part: PYTHON[peer](args.model, part, args.batch_size, args.threads) for part in args.part}
    for part, (call, _) in calls.items():
        result = call()
        if args.save:
            result.tofile(f"{args.save}.{part}")
        times = []
        for _ in range(CALLS[part]):
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


def aquatint_turn(args, file):
    program, threads = str(args.program), ["--threads", str(args.threads)]
    less = ["--no-encode", "--no-step", *([] if "vae" in args.part else ["--no-decode"])]
    size = ["--batch-size", str(args.batch_size), "--repeat", str(min(CALLS[part] for part in args.part))]
    output, _ = run([program, "bench", file, *size, "--json", *less, *threads])
    report = json.loads(output)
    names = {"denoiser": "denoiser", "vae": "decoder"}
    times = {part: [report[names[part]]["median"]] for part in args.part}
    what = ["--class-labels", "207"] if denoiser(args.model)[1].startswith("DiT") else ["-p", "a red cat"]
    guided = ["-g", "1"] if args.batch_size == 1 else []
    picture = ["run", file, *what, *guided, "--steps", "1", "--quiet", "-o", "/tmp/aquatint.png"]
    return times, run([program, *picture, *threads])[1]


def sdcpp_turn(args):
    steps = CALLS["denoiser"]
    picture = ["-p", "a red cat", "--cfg-scale", "1", "--steps", str(steps), "-H", "512", "-W", "512", "-o", "/tmp/sdcpp.png"]
    output, memory = run(["sd-cli", "-m", args.sdcpp, *picture, "--sampling-method", "euler", "-t", str(args.threads), "-v"])
    seconds = {
        part: float(re.search(rf"{what} completed, taking ([\d.]+)s", output)[1])
        for part, what in [("denoiser", "sampling"), ("vae", "decode_first_stage")]
    }
    return {"denoiser": [seconds["denoiser"] / steps], "vae": [seconds["vae"]]}, memory


def compare(args):
    """How far OpenVINO's results are from PyTorch's: a bench of wrong results is none."""
    import numpy

    folder = pathlib.Path(args.model).resolve().parent
    results = {}
    peers = [peer for peer in args.peer if peer in OPENVINO]
    for peer in ["torch", *peers]:
        python_turn(peer, args, str(folder / peer))
        for part in args.part:
            file = folder / f"{peer}.{part}"
            results[peer, part] = numpy.fromfile(file, numpy.float32)
            file.unlink()
    for part in args.part:
        for peer in peers:
            want, got = results["torch", part], results[peer, part]
            error = float(((got - want) ** 2).mean() ** 0.5 / (want**2).mean() ** 0.5)
            assert error < 0.5, f"{peer}'s {part} is {error:.2f} off; nothing was timed"
            print(f"{peer}'s {part} is {error:.3f} off PyTorch's")


def machine(threads):
    """Model, instructions, cores and load of this machine, in words."""
    cpu = pathlib.Path("/proc/cpuinfo").read_text()
    field = lambda name: next(line.split(":", 1)[1].strip() for line in cpu.splitlines() if line.startswith(name))
    flags = field("flags").split()
    known = ["avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8"]
    model = f"{field('model name')} (family {field('cpu family')}, model {field('model')})"
    has = ", ".join(flag for flag in known if flag in flags)
    return f"{model}, {has}; {threads} threads of {os.cpu_count()}; load {os.getloadavg()[0]:.1f} at the start"


def weights(directory, args, name, file):
    """Bytes of the weights on disk that a turn reads, text encoders aside for those that do not run them."""
    if file:
        return os.path.getsize(file)
    if name in OPENVINO:
        return sum(os.path.getsize(kept(directory, part, args.batch_size, name).replace(".xml", ".bin")) for part in args.part)
    folders = {"denoiser": denoiser(directory)[0], "vae": "vae"}
    return sum(path.stat().st_size for part in args.part for path in (pathlib.Path(directory) / folders[part]).glob("*.safetensors"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--aquatint", action="append", default=[], metavar="[NAME=]FILE.aqt", help="may be given several times")
    parser.add_argument("--sdcpp", metavar="FILE.gguf")
    parser.add_argument("--peer", action="append", choices=PYTHON, help="those in Python [default: torch and openvino]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", action="append", choices=PARTS, help="of the two [default: both]")
    parser.add_argument("--batch-size", type=int, default=1, help="samples of a denoiser call (default: %(default)s)")
    parser.add_argument("--program", type=pathlib.Path, default=pathlib.Path("target/release/aquatint"), help="(default: %(default)s)")
    parser.add_argument("--json", type=pathlib.Path, help="write everything that was measured")
    parser.add_argument("--svg", type=pathlib.Path, help="draw it")
    parser.add_argument("--turn", choices=PYTHON, help=argparse.SUPPRESS)
    parser.add_argument("--quantize", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--save", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.part = args.part or PARTS
    args.peer = args.peer or ["torch", REFERENCE]
    if args.quantize:
        return quantize(args.model, args.part, args.batch_size, args.threads, args.peer)
    if args.turn:
        return turn(args.turn, args)

    turns, files = {}, {}
    for given in args.aquatint:
        name, file = given.split("=", 1) if "=" in given else (pathlib.Path(given).stem, given)
        files[f"Aquatint {name}"] = file
        turns[f"Aquatint {name}"] = lambda file=file: aquatint_turn(args, file)
    for peer in args.peer:
        turns[peer] = lambda peer=peer: python_turn(peer, args)
    if args.sdcpp:
        turns["stable-diffusion.cpp"] = lambda: sdcpp_turn(args)
        files["stable-diffusion.cpp"] = args.sdcpp
    if any(peer in OPENVINO for peer in args.peer):
        # In a process of its own: what a parent held when it started a child counts as the child's.
        run([*again(args), "--quantize", *(word for peer in args.peer for word in ("--peer", peer))])
        compare(args)
    where = machine(args.threads)
    print(where)
    seen = {name: ({part: [] for part in args.part}, []) for name in turns}
    for _ in range(args.rounds):
        for name, one in turns.items():
            times, memory = one()
            for part in args.part:
                seen[name][0][part].append(statistics.median(times[part]))
            seen[name][1].append(memory)
            print(name, {part: round(seen[name][0][part][-1], 3) for part in args.part}, f"{memory / 1e9:.2f} GB", flush=True)
    rows = []
    for name, (times, memory) in seen.items():
        spans = {part: (min(t), statistics.median(t), max(t)) for part, t in times.items()}
        ratio = {}
        if REFERENCE in seen and name != REFERENCE:
            beside = seen[REFERENCE][0]
            ratio = {part: statistics.median(a / b for a, b in zip(times[part], beside[part])) for part in args.part}
        size = weights(args.model, args, name, files.get(name))
        rows.append({"name": name, "own": name.startswith("Aquatint"), **spans, "ratio": ratio, "memory": max(memory), "bytes": size})
    heads = {"denoiser": f"denoiser call, batch {args.batch_size}", "vae": "decoding an image"}
    print("\n| | " + " | ".join(f"{heads[part]} | beside OpenVINO" for part in args.part) + " | memory | weights |")
    print("|---|" + "---|" * (2 * len(args.part) + 2))
    for row in rows:
        cells = []
        for part in args.part:
            least, _, most = row[part]
            cells += [f"{least:.2f} to {most:.2f} s", f"{row['ratio'][part]:.2f}" if part in row["ratio"] else ""]
        print("| " + " | ".join([row["name"], *cells, f"{row['memory'] / 1e9:.2f} GB", f"{row['bytes'] / 1e9:.2f} GB"]) + " |")
    if args.json:
        args.json.write_text(json.dumps({"machine": where, "model": args.model, "rounds": args.rounds, "systems": rows}, indent=1))
    if args.svg:
        args.svg.write_text(charts.systems(rows, args.part, where))


if __name__ == "__main__":
    main()
