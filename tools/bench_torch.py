#!/usr/bin/env python3
"""Times a DiT denoiser of diffusers in PyTorch: what `aquatint bench` is compared with, on the same machine in one run.

    python tools/bench_torch.py MODEL_DIR [--device cuda] [--dtype float16] [--batch-size 2] [--repeat 20] [--no-compile]

MODEL_DIR is a DiTPipeline directory, such as `packer synth dit-xl-2-512 -o DIR` makes. On CUDA the model is compiled with
mode "max-autotune", which captures CUDA graphs and leaves attention to SDPA; times come from events around each call.
Needs torch and diffusers.
"""

import argparse
import json
import statistics
import time

import torch
from diffusers import DiTTransformer2DModel


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    dtype = getattr(torch, args.dtype)
    model = DiTTransformer2DModel.from_pretrained(args.model, subfolder="transformer", torch_dtype=dtype)
    model = model.to(args.device).eval()
    config = model.config
    call = model if args.no_compile else torch.compile(model, mode="max-autotune", fullgraph=True)

    generator = torch.Generator("cpu").manual_seed(1)
    size = (args.batch_size, config.in_channels, config.sample_size, config.sample_size)
    sample = torch.randn(size, generator=generator).to(args.device, dtype)
    timestep = torch.full((args.batch_size,), 500, device=args.device)
    labels = torch.arange(args.batch_size, device=args.device) % config.num_embeds_ada_norm

    def once():
        return call(sample, timestep=timestep, class_labels=labels, return_dict=False)[0]

    def timed():
        if args.device.startswith("cuda"):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            once()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / 1e3
        begin = time.perf_counter()
        once()
        return time.perf_counter() - begin

    with torch.inference_mode():
        for _ in range(3):
            result = once()
        assert torch.isfinite(result).all(), "the model's result is not finite; nothing was timed"
        times = sorted(timed() for _ in range(args.repeat))
    print(json.dumps({
        "torch": torch.__version__, "device": args.device, "dtype": args.dtype, "compiled": not args.no_compile,
        "batch": args.batch_size, "median": statistics.median(times), "best": times[0],
    }))


if __name__ == "__main__":
    main()
