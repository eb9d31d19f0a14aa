#!/usr/bin/env python3
"""Times whole pictures of a Stable Diffusion on a CPU, from a program's start to the PNG, in Aquatint and in diffusers' pipeline, and
tells the memory that each takes.

    python tools/bench_pictures.py MODEL_DIR FILE.aqt [--steps 1,20] [--peer NAME]... [--rounds 1] [--threads 2] [--json OUT.json]

MODEL_DIR is a directory in diffusers' layout, such as `packer synth sd15 -o DIR` makes, FILE.aqt what was packed of it. Peers: diffusers'
pipeline with its own networks (torch: f32), and the same with OpenVINO's W8A8 denoiser and decoder in their place (openvino; the
networks that `bench_peers.py MODEL_DIR --quantize --peer openvino` keeps beside MODEL_DIR). All make one image of the model's own
size of the same prompt with guidance, by the model's own scheduler; every turn is a process of its own, by turns.

Printed are seconds from the program's start to the PNG, of them what was done before the first step (importing, opening, reading,
compiling), and the most memory that was resident. Needs torch, diffusers and openvino.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import bench_peers

PROMPT, GUIDANCE = "a red cat", 7.5


def networks(pipeline, directory, threads):
    """What stands for a pipeline's denoiser and decoder: OpenVINO's, compiled for a guided image."""
    import openvino
    import torch

    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()

    def compiled(part, batch):
        network = core.read_model(bench_peers.kept(directory, part, 1))
        shapes = {port.any_name: list(port.shape) for port in network.inputs}
        network.reshape({name: [batch, *shape[1:]] for name, shape in shapes.items()})
        return core.compile_model(network, "CPU", config).create_infer_request()

    class Network(torch.nn.Module):
        """Enough of a diffusers model for a pipeline to call it."""

        dtype, device = torch.float32, torch.device("cpu")

        def __init__(self, request, settings):
            super().__init__()
            self.request, self.config = request, settings

        def forward(self, sample, timestep, encoder_hidden_states, **_):
            inputs = [sample.numpy(), timestep.float().expand(len(sample)).numpy(), encoder_hidden_states.numpy()]
            return (torch.from_numpy(self.request.infer(inputs)[0]),)

        def decode(self, latents, **_):
            return (torch.from_numpy(self.request.infer([latents.numpy()])[0]),)

    parts = {"unet": compiled("denoiser", 2), "vae": compiled("vae", 1)}
    for name, request in parts.items():
        setattr(pipeline, name, Network(request, getattr(pipeline, name).config))


def turn(args, steps):
    """In a process of its own: the pipeline, loaded and run once. Prints when the first step began, by the wall clock."""
    import diffusers
    import torch

    torch.set_num_threads(args.threads)
    replaced = args.turn == "openvino"
    load = diffusers.StableDiffusionPipeline.from_pretrained
    if replaced:
        # The networks that are replaced are never read: their configurations alone are.
        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel.from_config(diffusers.UNet2DConditionModel.load_config(args.model, subfolder="unet"))
            vae = diffusers.AutoencoderKL.from_config(diffusers.AutoencoderKL.load_config(args.model, subfolder="vae"))
        pipeline = load(args.model, unet=unet, vae=vae, safety_checker=None)
        networks(pipeline, args.model, args.threads)
    else:
        pipeline = load(args.model, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    began = time.time()
    image = pipeline(PROMPT, num_inference_steps=steps, guidance_scale=GUIDANCE, generator=torch.Generator().manual_seed(1)).images[0]
    image.save(args.out)
    print(json.dumps({"began": began, "size": image.size}))


def measure(args, system, steps):
    """Seconds to the PNG, seconds of them before the picture was begun (None where not told), bytes."""
    out = str(pathlib.Path(args.out).with_stem(f"{pathlib.Path(args.out).stem}-{system}-{steps}"))
    pathlib.Path(out).unlink(missing_ok=True)
    if system == "aquatint":
        picture = ["run", args.file, "-p", PROMPT, "-g", str(GUIDANCE), "--seed", "1", "--quiet", "-o", out]
        command = [str(args.program), *picture, "--threads", str(args.threads), "--steps", str(steps)]
    else:
        command = [sys.executable, __file__, args.model, args.file, "--threads", str(args.threads), "--out", out]
        command += ["--turn", system, "--steps", str(steps)]
    began = time.time()
    output, memory = bench_peers.run(command)
    seconds = time.time() - began
    assert pathlib.Path(out).exists(), output
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"began"')]
    return seconds, lines[0]["began"] - began if lines else None, memory


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL_DIR")
    parser.add_argument("file", metavar="FILE.aqt")
    parser.add_argument("--steps", default="1,20", help="numbers of steps (default: %(default)s)")
    parser.add_argument("--peer", action="append", choices=["openvino", "torch"], help="[default: both]")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--program", type=pathlib.Path, default=pathlib.Path("target/release/aquatint"), help="(default: %(default)s)")
    parser.add_argument("--out", default="/tmp/picture.png", help="where pictures go, each system's beside it (default: %(default)s)")
    parser.add_argument("--json", type=pathlib.Path, help="write everything that was measured")
    parser.add_argument("--turn", choices=["openvino", "torch"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turn:
        return turn(args, int(args.steps))
    where = bench_peers.machine(args.threads)
    print(where)
    counts = [int(steps) for steps in args.steps.split(",")]
    systems = ["aquatint", *(args.peer or ["openvino", "torch"])]
    seen = {(system, steps): [] for system in systems for steps in counts}
    for _ in range(args.rounds):
        for steps in counts:
            for system in systems:
                seconds, before, memory = measure(args, system, steps)
                seen[system, steps].append((seconds, before, memory))
                told = "" if before is None else f", {before:.1f} s before it was begun"
                print(f"{system}, {steps} steps: {seconds:.1f} s{told}, {memory / 1e9:.2f} GB", flush=True)
    print("\n| | " + " | ".join(f"{steps} step{'s' * (steps > 1)}" for steps in counts) + " | memory |")
    print("|---|" + "---|" * (len(counts) + 1))
    for system in systems:
        times = [f"{statistics.median(s for s, _, _ in seen[system, steps]):.1f} s" for steps in counts]
        memory = max(m for steps in counts for _, _, m in seen[system, steps])
        print(f"| {system} | " + " | ".join(times) + f" | {memory / 1e9:.2f} GB |")
    if args.json:
        runs = [{"system": system, "steps": steps, "runs": runs} for (system, steps), runs in seen.items()]
        args.json.write_text(json.dumps({"machine": where, "pictures": runs}, indent=1))


if __name__ == "__main__":
    main()
