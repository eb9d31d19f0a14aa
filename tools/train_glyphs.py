#!/usr/bin/env python3
"""Train the small letter model in models/glyphs: an AutoencoderKL and a class-conditional DiT.

The data are the capitals A-Z, rendered at 48x48 from TrueType fonts in random colours, sizes,
positions and small rotations (glyphs_render.py).  The result is a directory which diffusers'
DiTPipeline loads as it is; classes 0..25 are the letters, the other rows of the 1000-class table
are zero and row 1000 is the null class (DiTPipeline hard-codes that number).

Needs torch, diffusers, pillow, safetensors and these Debian packages (12, bookworm):

    fonts-dejavu-core fonts-dejavu-extra fonts-liberation fonts-freefont-ttf fonts-noto-core
    fonts-lato fonts-open-sans fonts-crosextra-carlito fonts-crosextra-caladea
    fonts-roboto-unhinted fonts-comfortaa fonts-quicksand fonts-play

How models/glyphs was made, on two cores of a shared CPU ("stopped" is by hand; a stage with
--resume takes the averaged weights of the one before, with a new optimizer and schedule):

    data                                                    78,000 + 5,200 renders      2 min
    vae --steps 1500                                        stopped after 500 steps    12 min
    vae --resume --steps 1200 --minutes 7.5                 261 steps                   8 min
    classifier --steps 1500 --minutes 6                     1,500 steps                 3 min
    latents --count 26000                                   the first 26,000 renders    2 min
    dit --batch 64 --steps 12000 --minutes 40               stopped after 1,700 steps  17 min
    dit --resume --batch 64 --steps 12000 --minutes 30      stopped after 600 steps     7 min
    dit --resume --batch 64 --steps 12000 --minutes 30      4,613 steps                30 min
    vae --resume --decoder --steps 1500 --minutes 30        600 steps, mostly paused   28 min
    export

The first two transformer stages used plain min-SNR weights and the first one the common learning
rate for the class table; with those the letters hardly followed their labels (see command_dit and
Training for what replaced them).  The last decoder stage ran beside the transformer.

All of it starts from fixed seeds: 1 training renders, 2 reference renders, 3 and 0 autoencoder,
4 scaling factor, 5 transformer, 6 classifier.  A run limited by --minutes depends on the speed
of the machine, so a repetition gives an equivalent model and not the same bytes.
"""

import argparse
import copy
import glob
import json
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import eval_glyphs
from glyphs_render import LETTERS, SIZE, compose, random_colours, render_chunk

NULL_CLASS = 1000
TRAIN_SIZE, TRAIN_SEED = 78_000, 1  # 3,000 per letter
REFERENCE_SIZE, REFERENCE_SEED = 5_200, 2  # 200 per letter, never trained on


def command_data(args):
    """Renders the training and the reference masks."""
    for name, seed, total in [("train", TRAIN_SEED, TRAIN_SIZE), ("reference", REFERENCE_SEED, REFERENCE_SIZE)]:
        chunk = 1300
        jobs = [(args.fonts, seed, i, chunk) for i in range(total // chunk)]
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            masks = np.concatenate(list(pool.map(render_chunk, jobs)))
        colours = random_colours(total, np.random.default_rng([seed, 1 << 20]))
        np.savez(args.work / f"{name}.npz", masks=masks, colours=colours, labels=np.arange(total) % 26)
        print(name, masks.shape, flush=True)


def load_data(args, name):
    """(masks, colours, labels) of the training or the reference set."""
    data = np.load(args.work / f"{name}.npz")
    return tuple(torch.from_numpy(data[key]) for key in ("masks", "colours", "labels"))


# ------------------------------------------------------------------------------------- training


class Training:
    """What the three training loops share: AdamW, warm-up and cosine decay, EMA, the log.

    A run ends after `args.steps` steps or, with --minutes, when that time is over if this comes
    first; the learning rate decays along whichever is nearer its end, so it always reaches zero.
    """

    def __init__(self, args, name, model, lr, warmup, ema_decay, weight_decay=0.0):
        self.args, self.name, self.model = args, name, model
        self.lr, self.warmup, self.ema_decay = lr, warmup, ema_decay
        if args.resume:  # weights only: the optimizer and the schedule start anew
            model.load_state_dict(torch.load(args.work / f"{name}.pt"))
        # A table row sees one image in 26 of a batch, and its signal must hold its own beside the
        # timestep's: with the common rate it lags far behind.
        table = [p for n, p in model.named_parameters() if "embedding_table" in n]
        others = [p for n, p in model.named_parameters() if "embedding_table" not in n]
        groups = [{"params": others, "scale": 1}, {"params": table, "scale": 10}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.step, self.progress, self.start = 0, 0.0, time.time()
        self.logged, self.totals = 0, {}  # for the log: the step of the last line, sums since

    def update(self, loss, **values):
        """One optimizer step; the values are averaged into the log."""
        rate = self.lr * min(1, (self.step + 1) / self.warmup) * (0.5 + 0.5 * math.cos(math.pi * self.progress))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        by_clock = (time.time() - self.start) / (60 * self.args.minutes) if self.args.minutes else 0
        self.progress = min(1, max(self.step / self.args.steps, by_clock))
        # A short average at first, so that an early checkpoint is not mostly the initial weights.
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)
        for key, value in values.items():
            self.totals[key] = self.totals.get(key, 0.0) + value.item()
        if self.step % 100 == 0 or self.progress == 1:
            count = self.step - self.logged
            shown = " ".join(f"{key} {value / count:.5f}" for key, value in self.totals.items())
            print(f"{self.name} step {self.step} {shown} lr {rate:.2e} {time.time() - self.start:.0f} s", flush=True)
            self.logged, self.totals = self.step, {}
            self.save()

    def save(self):
        """Writes the averaged weights, never leaving a half-written file behind."""
        path = self.args.work / f"{self.name}.pt"
        torch.save(self.ema.state_dict(), f"{path}.new")
        os.replace(f"{path}.new", path)


def use_plain_attention(model):
    """Computes attention as plain matrix products.

    With so few tokens the backward pass in bfloat16 on a CPU takes half the time of the fused one.
    """
    from diffusers.models.attention_processor import Attention, AttnProcessor

    for module in model.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())


def new_vae():
    """The autoencoder: 48x48x3 to 12x12x4 and back."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[32, 32, 64],
        layers_per_block=1,
        norm_num_groups=16,
        latent_channels=4,
        sample_size=SIZE,
    )
    use_plain_attention(vae)
    # Start with little posterior noise: a deviation of 1 would drown the untrained mean.
    with torch.no_grad():
        vae.quant_conv.bias[4:] = -4
    return vae


def load_vae(args):
    vae = new_vae()
    vae.load_state_dict(torch.load(args.work / "vae.pt"))
    return vae.eval().requires_grad_(False)


def command_vae(args):
    """Trains the autoencoder: L1 + L2 reconstruction and a small KL term.

    With --decoder the latent space stays as it is, so that a transformer trained on it stays valid.
    """
    masks, _, _ = load_data(args, "train")
    rng = np.random.default_rng(3)
    vae = new_vae()
    if args.decoder:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    run = Training(args, "vae", vae, lr=2e-3, warmup=50, ema_decay=0.99)
    while run.progress < 1:
        pick = torch.from_numpy(rng.integers(len(masks), size=args.batch))
        x = compose(masks[pick], torch.from_numpy(random_colours(args.batch, rng)))
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample.float()
        l1, l2 = F.l1_loss(y, x), F.mse_loss(y, x)
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        run.update(l1 + 2 * l2 + 1e-3 * kl, l1=l1, l2=l2, kl=kl)


@torch.no_grad()
def command_latents(args):
    """Encodes the training set once: posterior mean and deviation, and the scaling factor."""
    vae = load_vae(args)
    masks, colours, _ = load_data(args, "train")
    masks, colours = masks[: args.count], colours[: args.count]
    parts = []
    for i in range(0, len(masks), 100):
        with torch.autocast("cpu", torch.bfloat16):
            moments = vae.encode(compose(masks[i : i + 100], colours[i : i + 100])).latent_dist
        parts.append(torch.cat([moments.mean, moments.std], 1).half())
    latents = torch.cat(parts).contiguous()  # the encoder may have left channels last
    mean, std = latents.float().chunk(2, 1)
    sample = mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(4))
    factor = 1 / sample.std().item()
    save_file({"latents": latents, "factor": torch.tensor(factor)}, args.work / "latents.safetensors")
    masks, colours, _ = load_data(args, "reference")
    x = compose(masks[:1040], colours[:1040])
    y = vae.decode(vae.encode(x).latent_dist.mode()).sample
    psnr = 10 * math.log10(4 / F.mse_loss(y.clamp(-1, 1), x).item())
    print(f"scaling factor {factor:.4f}, mean {mean.mean((0, 2, 3)).tolist()}, posterior std {std.mean():.4f}, "
          f"held-out PSNR {psnr:.2f} dB")


def new_dit():
    """The transformer, with one timestep MLP and class table shared by all blocks.

    diffusers stores a copy of both per block, and real DiT checkpoints hold the same numbers in
    each; sharing them in training keeps it so.
    """
    from diffusers import DiTTransformer2DModel

    dit = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=4,
        out_channels=8,
        num_layers=6,
        sample_size=12,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    # DiT's initialisation: every block starts as the identity and the output as zero.
    for module in dit.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)
    shared = dit.transformer_blocks[0].norm1.emb
    torch.nn.init.normal_(shared.timestep_embedder.linear_1.weight, std=0.02)
    torch.nn.init.normal_(shared.timestep_embedder.linear_2.weight, std=0.02)
    table = shared.class_embedder.embedding_table.weight
    torch.nn.init.normal_(table, std=0.02)
    with torch.no_grad():
        table[26:NULL_CLASS] = 0  # no letter uses these rows
    # Labels are dropped in the training loop: once per image rather than once per block.
    shared.class_embedder.dropout_prob = 0
    for block in dit.transformer_blocks:
        block.norm1.emb = shared
        torch.nn.init.zeros_(block.norm1.linear.weight)
    for layer in (dit.proj_out_1, dit.proj_out_2):
        torch.nn.init.zeros_(layer.weight)
    use_plain_attention(dit)
    return dit


def command_dit(args):
    """Trains the transformer to predict the noise; one label in ten becomes the null class."""
    stored = load_file(args.work / "latents.safetensors")
    factor = stored["factor"].item()
    latents = stored["latents"].float() * factor
    _, _, labels = load_data(args, "train")
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    torch.manual_seed(5)
    dit = new_dit()
    run = Training(args, "dit", dit, lr=args.lr, warmup=100, ema_decay=0.999)
    while run.progress < 1:
        pick = torch.randint(len(latents), (args.batch,))
        mean, std = latents[pick].chunk(2, 1)
        x = mean + std * torch.randn_like(mean)
        y = torch.where(torch.rand(args.batch) < 0.1, NULL_CLASS, labels[pick])
        # Stratified timesteps: each batch covers 0..999 evenly, which quiets the loss.
        t = ((torch.arange(args.batch) + torch.rand(args.batch)) * (1000 / args.batch)).long().clamp(max=999)
        noise = torch.randn_like(x)
        a = alphas[t].view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            out = dit(a.sqrt() * x + (1 - a).sqrt() * noise, timestep=t, class_labels=y).sample.float()
        predicted, variance = out.chunk(2, 1)
        error = (predicted - noise).square().mean((1, 2, 3))
        # The noise loss alone hardly counts the early steps, where the letter is decided: weigh as
        # for a velocity target, with less effort on the nearly noiseless steps (min-SNR, gamma 5).
        snr = alphas[t] / (1 - alphas[t])
        loss = (error * ((snr + 1).clamp(max=5) / snr).clamp(max=50)).mean()
        # The last four channels are a learned variance in DiT, which DDIM does not read: kept near 0.
        run.update(loss + 1e-3 * variance.square().mean(), weighted=loss, mse=error.mean())


# ----------------------------------------------------------------------------------- classifier


class Classifier(torch.nn.Module):
    """Four strided 3x3 convolutions and two linear layers, ReLU between; input in -1..1."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 24, 3, 2, 1)
        self.conv2 = torch.nn.Conv2d(24, 48, 3, 2, 1)
        self.conv3 = torch.nn.Conv2d(48, 64, 3, 2, 1)
        self.conv4 = torch.nn.Conv2d(64, 64, 3, 2, 1)
        self.fc1 = torch.nn.Linear(64 * 3 * 3, 96)
        self.fc2 = torch.nn.Linear(96, 26)

    def forward(self, x):
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(layer(x))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def command_classifier(args):
    """Trains the classifier and prints its accuracy on the reference set."""
    masks, _, labels = load_data(args, "train")
    rng = np.random.default_rng(6)
    torch.manual_seed(6)
    net = Classifier()
    run = Training(args, "classifier", net, lr=2e-3, warmup=50, ema_decay=0.99, weight_decay=0.01)
    while run.progress < 1:
        pick = torch.from_numpy(rng.integers(len(masks), size=args.batch))
        x = compose(masks[pick], torch.from_numpy(random_colours(args.batch, rng)))
        # A little noise keeps the classifier from leaning on the exact edge profile of a render.
        x = x + 0.05 * torch.randn_like(x)
        loss = F.cross_entropy(net(x), labels[pick], label_smoothing=0.02)
        run.update(loss, cross_entropy=loss)
    masks, colours, labels = load_data(args, "reference")
    with torch.no_grad():
        right = (run.ema(compose(masks, colours)).argmax(1) == labels).float().mean()
    print(f"held-out accuracy {right:.5f} on {len(labels)} images")


# --------------------------------------------------------------------------------------- export


def command_export(args):
    """Writes the pipeline directory in float16, the classifier and the reference statistics."""
    from diffusers import DDIMScheduler, DiTPipeline

    vae, dit = load_vae(args), new_dit()
    factor = load_file(args.work / "latents.safetensors")["factor"].item()
    vae.register_to_config(scaling_factor=round(factor, 6))
    dit.load_state_dict(torch.load(args.work / "dit.pt"))
    for block in dit.transformer_blocks[1:]:  # safetensors refuses shared tensors
        block.norm1.emb = copy.deepcopy(block.norm1.emb)
    scheduler = DDIMScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear",
        clip_sample=False, set_alpha_to_one=True, steps_offset=0, prediction_type="epsilon",
    )
    names = {i: letter for i, letter in enumerate(LETTERS)}
    pipe = DiTPipeline(transformer=dit.half(), vae=vae.half(), scheduler=scheduler, id2label=names)
    # The constructor keeps the reverse table only; the index lists the letters by number.
    pipe.register_to_config(id2label={str(i): letter for i, letter in names.items()})
    pipe.save_pretrained(args.out, safe_serialization=True)
    for path in glob.glob(f"{args.out}/**/*.json", recursive=True):
        config = json.loads(Path(path).read_text())
        config.pop("_name_or_path", None)
        Path(path).write_text(json.dumps(config, indent=2) + "\n")

    weights = {name: value.half() for name, value in torch.load(args.work / "classifier.pt").items()}
    save_file(weights, args.out / "classifier.safetensors")
    masks, colours, _ = load_data(args, "reference")
    images = (compose(masks, colours).numpy() + 1) / 2
    features, _ = eval_glyphs.classify({name: value.numpy() for name, value in weights.items()}, images)
    mean, covariance = (torch.from_numpy(value.astype(np.float32)) for value in eval_glyphs.statistics(features))
    save_file({"mean": mean, "covariance": covariance}, args.out / "reference.safetensors")
    for path in args.out.rglob("*.safetensors"):  # written readable by the owner alone
        path.chmod(0o644)
    total = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {total} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("glyphs-work"), help="data, checkpoints (%(default)s)")
    parser.add_argument("--fonts", default="/usr/share/fonts/truetype", help="font root (%(default)s)")
    commands = parser.add_subparsers(required=True)

    def command(function, **options):
        sub = commands.add_parser(function.__name__.removeprefix("command_"), help=function.__doc__)
        sub.set_defaults(function=function)
        for name, default in options.items():
            if isinstance(default, bool):
                sub.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=default)
            else:
                sub.add_argument(f"--{name}", type=type(default), default=default, help="(default: %(default)s)")

    command(command_data)
    command(command_vae, resume=False, decoder=False, steps=1500, minutes=0.0, batch=32)
    command(command_latents, count=TRAIN_SIZE)
    command(command_dit, resume=False, steps=10000, minutes=0.0, batch=128, lr=1e-3)
    command(command_classifier, resume=False, steps=1500, minutes=0.0, batch=128)
    command(command_export, out=Path("models/glyphs"))
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    torch.manual_seed(0)
    args.work.mkdir(parents=True, exist_ok=True)
    args.function(args)


if __name__ == "__main__":
    main()
