#!/usr/bin/env python3
"""Times Stable Diffusion's UNet and decoder on a CPU in PyTorch (f32) and OpenVINO (W8A8 by NNCF): what `aquatint bench`
is compared with, on the same machine in one run.

    python tools/bench_peers.py MODEL_DIR [--threads 2] [--repeat 4] [--part unet] [--part vae] [--peer torch] [--peer openvino]

MODEL_DIR is a StableDiffusionPipeline directory, such as `packer synth sd15 -o DIR` makes; one call is one sample of the
model's own size. NNCF calibrates on a single random sample, which is enough for timing and for nothing else. Needs torch,
diffusers, openvino and nncf.
"""

import argparse
import json
import statistics
import time

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel


class Denoiser(torch.nn.Module):
    def __init__(self, directory):
        super().__init__()
        self.unet = UNet2DConditionModel.from_pretrained(directory, subfolder="unet").float()
        config = self.unet.config
        size = (1, config.in_channels, config.sample_size, config.sample_size)
        self.inputs = torch.randn(size), torch.tensor([500.0]), torch.randn(1, 77, config.cross_attention_dim)

    def forward(self, sample, timestep, context):
        return self.unet(sample, timestep, context, return_dict=False)[0]


class Decoder(torch.nn.Module):
    def __init__(self, directory):
        super().__init__()
        self.vae = AutoencoderKL.from_pretrained(directory, subfolder="vae").float()
        # The images' size of the file, in latents.
        side = self.vae.config.sample_size // 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.inputs = (torch.randn(1, self.vae.config.latent_channels, side, side),)

    def forward(self, latents):
        return self.vae.decode(latents, return_dict=False)[0]


def in_torch(model, _):
    return lambda: model(*model.inputs).numpy()


def in_openvino(model, threads):
    import nncf
    import openvino

    arrays = [x.numpy() for x in model.inputs]
    converted = openvino.convert_model(model, example_input=model.inputs)
    converted.reshape({port.any_name: list(x.shape) for port, x in zip(converted.inputs, arrays)})
    kind = nncf.ModelType.TRANSFORMER if isinstance(model, Denoiser) else None
    quantized = nncf.quantize(
        converted, nncf.Dataset([tuple(arrays)]), subset_size=1, model_type=kind, preset=nncf.QuantizationPreset.MIXED
    )
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(quantized, "CPU", config).create_infer_request()
    return lambda: request.infer(arrays)[0]


PARTS = {"unet": Denoiser, "vae": Decoder}
PEERS = {"torch": in_torch, "openvino": in_openvino}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--peer", action="append", choices=PEERS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    with torch.inference_mode():
        for part in args.part or PARTS:
            model = PARTS[part](args.model).eval()
            want = model(*model.inputs).numpy()
            for peer in args.peer or PEERS:
                call = PEERS[peer](model, args.threads)
                got = call()
                error = float(((got - want) ** 2).mean() ** 0.5 / (want**2).mean() ** 0.5)
                assert error < 0.5, f"{peer}'s {part} is {error:.2f} off; nothing was timed"
                times = []
                for _ in range(args.repeat):
                    begin = time.perf_counter()
                    call()
                    times.append(time.perf_counter() - begin)
                median = statistics.median(times)
                print(json.dumps({"part": part, "peer": peer, "median": median, "best": min(times), "error": error}), flush=True)


if __name__ == "__main__":
    main()
