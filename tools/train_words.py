#!/usr/bin/env python3
"""Train the small text-to-image model in models/words: CLIP's text encoder, a UNet and an AutoencoderKL.

The data are capitals A-Z in three styles and eight named colours on one another, with captions such as "a red A on
blue, italic" in six wordings (words_render.py).  The result is a directory which diffusers' StableDiffusionPipeline
loads as it is.  No training image has the letter, colours and style of one of the 260 captions in
models/words/prompts.txt, which are kept for calibration and scoring.

Needs torch, diffusers, transformers, pillow, safetensors, and the Debian packages of fonts that train_glyphs.py names
but for comfortaa, quicksand and play.

How models/words was made, on one core of an AMD EPYC (AVX-512 with bfloat16) that others shared too, so that a stage
had about half of it ("stopped" is by hand; minutes are by the clock):

    prompts                                    260 captions
    tokenizer                                  568 tokens, one for each word of the captions
    data                                       31,200 + 3,120 renders                                2 min
    vae --steps 3000 --minutes 11              from models/glyphs/vae; stopped after 200 steps       4 min
    vae --resume --steps 3000 --minutes 8.5    498 steps                                             9 min
    text                                       stopped after 300 steps                               2 min
    latents --count 15600                      the first 15,600 renders                              2 min
    unet --minutes 58 --lr 1.2e-3              stopped after 2,800 steps                            51 min
    classifier                                 1,200 steps                                           2 min
    export

each with `--threads 1`.  The first autoencoder stage was in float32; bfloat16 and plain attention are faster here.

What was measured (eval_words.py): the classifier and the colour check read 99.8 % of 3,120 unseen renders wholly right,
and 99.9 % of 1,040 that went through the autoencoder, whose PSNR is 28.7 dB.  Of 260 images by diffusers in float32,
50 steps, seed 0:

    guidance    letter    ink       background    all three    style
    7.5         98.9 %    93.1 %    100 %         91.9 %       98.1 %
    4           100 %     95.8 %    100 %         95.8 %       98.1 %

The letters' own autoencoder, made for pairs of high contrast, turned red on purple into yellow on purple: hence the
stage that fits it.  The warm-up of the text encoder on its own, by a linear probe, takes seconds where the denoising
loss would take long to tell the captions apart: the UNet drew letters by their captions after 1,000 steps (78 %).
Strong guidance drives thin strokes past their colour: pink on black becomes white, green on white black.

All of it starts from fixed seeds: 7 prompts, 1 training renders, 2 reference renders, 3 autoencoder, 4 latents, 5 text
encoder, 6 UNet, 8 classifier, 9 its test.  A run limited by --minutes depends on the speed of the machine, so a
repetition gives an equivalent model and not the same bytes.
"""

import argparse
import json
import math
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from eval_words import MODEL_DIR, read_prompts, score
from safetensors.torch import load_file, save_file
from train_glyphs import Classifier, Training, use_plain_attention
from words_render import (
    STYLES,
    balanced_captions,
    paint,
    random_attributes,
    random_caption,
    read_caption,
    render_chunk,
)
from words_tokenizer import TOKENS, write_tokenizer

GLYPHS_DIR = MODEL_DIR.parent / "glyphs"
TRAIN_SIZE, TRAIN_SEED = 31_200, 1
REFERENCE_SIZE, REFERENCE_SEED = 3_120, 2
KINDS = [26, 8, 8, 3]  # of letters, inks, backgrounds, styles


def command_prompts(args):
    """Writes the captions for scoring, in a fixed order."""
    captions = balanced_captions(260, np.random.default_rng(7))
    (MODEL_DIR / "prompts.txt").write_text("".join(f"{caption}\n" for caption in captions))


def command_data(args):
    """Renders the training and the reference masks; no training image has the attributes of a prompt."""
    prompts = {read_caption(prompt) for prompt in read_prompts(MODEL_DIR / "prompts.txt")}
    for name, seed, total, without in [
        ("train", TRAIN_SEED, TRAIN_SIZE, prompts),
        ("reference", REFERENCE_SEED, REFERENCE_SIZE, ()),
    ]:
        attributes = random_attributes(total, np.random.default_rng([seed, 1 << 20]), without)
        parts = np.split(attributes, total // 1040)
        jobs = [(args.fonts, [seed, i], part) for i, part in enumerate(parts)]
        with ProcessPoolExecutor(args.threads) as pool:
            masks = np.concatenate(list(pool.map(render_chunk, jobs)))
        np.savez(args.work / f"{name}.npz", masks=masks, attributes=attributes)
        print(name, masks.shape, flush=True)


def load_data(args, name):
    """(masks [N,48,48], attributes [N,4]) of the training or the reference set."""
    data = np.load(args.work / f"{name}.npz")
    return data["masks"], data["attributes"]


# --------------------------------------------------------------------------------- autoencoder


def new_vae():
    """The autoencoder of models/glyphs: 48x48x3 to 12x12x4 and back."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(GLYPHS_DIR / "vae", torch_dtype=torch.float32)
    use_plain_attention(vae)
    return vae


def command_vae(args):
    """Fits the letters' autoencoder to these colours: L1 + L2 reconstruction and a small KL term."""
    masks, attributes = load_data(args, "train")
    rng = np.random.default_rng(3)
    torch.manual_seed(3)
    run = Training(args, "vae", new_vae(), lr=args.lr, warmup=20, ema_decay=0.98)
    while run.progress < 1:
        pick = rng.integers(len(masks), size=args.batch)
        x = paint(masks[pick], attributes[pick], rng)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = run.model.encode(x).latent_dist
            y = run.model.decode(posterior.sample()).sample.float()
        l1, l2 = F.l1_loss(y, x), F.mse_loss(y, x)
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        run.update(l1 + 2 * l2 + 1e-3 * kl, l1=l1, l2=l2, kl=kl)


@torch.no_grad()
def command_latents(args):
    """Encodes the training set once: posterior mean and deviation, and the scaling factor."""
    vae = load_vae(args)
    masks, attributes = (part[: args.count] for part in load_data(args, "train"))
    rng = np.random.default_rng(4)
    parts = []
    for i in range(0, len(masks), 104):
        x = paint(masks[i : i + 104], attributes[i : i + 104], rng)
        with torch.autocast("cpu", torch.bfloat16):
            moments = vae.encode(x).latent_dist
        parts.append(torch.cat([moments.mean, moments.std], 1).half().contiguous())
    latents = torch.cat(parts)
    mean, std = latents.float().chunk(2, 1)
    sample = mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(4))
    factor = 1 / sample.std().item()
    save_file({"latents": latents, "factor": torch.tensor(factor)}, args.work / "latents.safetensors")
    masks, attributes = load_data(args, "reference")
    x = paint(masks[:520], attributes[:520], rng)
    y = vae.decode(vae.encode(x).latent_dist.mode()).sample
    psnr = 10 * math.log10(4 / F.mse_loss(y.clamp(-1, 1), x).item())
    print(f"scaling factor {factor:.4f}, mean {mean.mean((0, 2, 3)).tolist()}, posterior std {std.mean():.4f}, "
          f"held-out PSNR {psnr:.2f} dB")


def load_vae(args):
    vae = new_vae()
    vae.load_state_dict(torch.load(args.work / "vae.pt"))
    return vae.eval().requires_grad_(False)


# ---------------------------------------------------------------------------- text and denoiser


def command_tokenizer(args):
    """Writes the tokenizer; see words_tokenizer.py."""
    from transformers import CLIPTokenizer

    folder = args.work / "tokenizer"
    print(write_tokenizer(folder), CLIPTokenizer.from_pretrained(folder).tokenize("a bold green Q on white, 42"))


def load_tokenizer(args):
    """A function from captions to ids [N,77], filled up with the end token."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(args.work / "tokenizer")
    fill = {"padding": "max_length", "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
    return lambda captions: tokenizer(captions, **fill).input_ids


class Words(torch.nn.Module):
    """The text encoder, the UNet and a linear probe that is thrown away after training."""

    def __init__(self, args):
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        super().__init__()
        vocabulary = len(json.loads((args.work / "tokenizer" / "vocab.json").read_text()))
        self.text = CLIPTextModel(CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=128,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        ))
        self.text.set_attn_implementation("eager")  # twice as fast as the fused one in bfloat16 on a CPU
        self.unet = UNet2DConditionModel(
            sample_size=12,
            block_out_channels=(64, 96),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 3),  # the numbers of heads, of 32 features each
            cross_attention_dim=128,
        )
        use_plain_attention(self.unet)
        self.probe = torch.nn.Linear(128, sum(KINDS))
        # Every residual branch starts as nothing and the output as zero, which allows a high rate.
        for name, layer in self.unet.named_modules():
            if name.endswith(("conv2", "proj_out", "conv_out")):
                torch.nn.init.zeros_(layer.weight)
                torch.nn.init.zeros_(layer.bias)

    def encode(self, ids):
        return self.text(ids).last_hidden_state

    def probe_loss(self, features, ids, attributes):
        """Cross entropy of the four attributes as read from one token at or behind the caption's end.

        Most of the 77 tokens which the UNet attends to are such ones.
        """
        end = (ids == self.text.config.eos_token_id).int().argmax(1)
        at = end + (torch.rand(len(ids)) * (TOKENS - end)).long()
        logits = self.probe(features[torch.arange(len(ids)), at]).split(KINDS, 1)
        return sum(F.cross_entropy(logit, attributes[:, i]) for i, logit in enumerate(logits)) / len(KINDS)


def command_text(args):
    """Warms up the text encoder: a linear probe reads letter, colours and style from its result."""
    prompts = {read_caption(prompt) for prompt in read_prompts(MODEL_DIR / "prompts.txt")}
    rng = np.random.default_rng(5)
    torch.manual_seed(5)
    model, tokenize = Words(args), load_tokenizer(args)
    run = Training(args, "words", model, lr=args.lr, warmup=20, ema_decay=0.98)
    while run.progress < 1:
        attributes = random_attributes(args.batch, rng, prompts)
        ids = tokenize([random_caption(row, rng) for row in attributes])
        with torch.autocast("cpu", torch.bfloat16):
            features = model.encode(ids)
        loss = model.probe_loss(features.float(), ids, torch.from_numpy(attributes))
        run.update(loss, probe=loss)


def command_unet(args):
    """Trains text encoder and UNet to predict the noise; one caption in ten is empty."""
    stored = load_file(args.work / "latents.safetensors")
    latents = stored["latents"].float() * stored["factor"].item()
    _, attributes = load_data(args, "train")
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    rng = np.random.default_rng([6, args.seed])
    torch.manual_seed(6 + args.seed)
    model, tokenize = Words(args), load_tokenizer(args)
    run = Training(args, "words", model, lr=args.lr, warmup=50, ema_decay=args.ema)
    while run.progress < 1:
        pick = rng.integers(len(latents), size=args.batch)
        mean, std = latents[pick].chunk(2, 1)
        x = mean + std * torch.randn_like(mean)
        known = torch.from_numpy(rng.random(args.batch) >= 0.1)
        ids = tokenize([random_caption(attributes[i], rng) if k else "" for i, k in zip(pick, known)])
        # Stratified timesteps: each batch covers 0..999 evenly, which quiets the loss.
        t = ((torch.arange(args.batch) + torch.rand(args.batch)) * (1000 / args.batch)).long().clamp(max=999)
        noise = torch.randn_like(x)
        a = alphas[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * x + (1 - a).sqrt() * noise
        with torch.autocast("cpu", torch.bfloat16):
            features = model.encode(ids)
            predicted = model.unet(noisy, t, features).sample.float()
        error = (predicted - noise).square().mean((1, 2, 3))
        # As for a velocity target, with less effort on the nearly noiseless steps: see train_glyphs.py.
        snr = alphas[t] / (1 - alphas[t])
        loss = (error * ((snr + 1).clamp(max=5) / snr).clamp(max=50)).mean()
        probe = model.probe_loss(features[known].float(), ids[known], torch.from_numpy(attributes[pick])[known])
        run.update(loss + 0.05 * probe, weighted=loss, mse=error.mean(), probe=probe)


# ----------------------------------------------------------------------------------- classifier


def new_classifier():
    """The letters' classifier with three outputs more, for the styles."""
    net = Classifier()
    net.fc2 = torch.nn.Linear(96, KINDS[0] + KINDS[3])
    return net


def command_classifier(args):
    """Trains the classifier and prints what it and the colour check read right on the reference set."""
    masks, attributes = load_data(args, "train")
    rng = np.random.default_rng(8)
    torch.manual_seed(8)
    net = new_classifier()
    run = Training(args, "classifier", net, lr=2e-3, warmup=50, ema_decay=0.99, weight_decay=0.01)
    while run.progress < 1:
        pick = rng.integers(len(masks), size=args.batch)
        wanted = attributes[pick].copy()
        wanted[:, 1:3] = random_attributes(args.batch, rng)[:, 1:3]  # any colours for any letter
        x = paint(masks[pick], wanted, rng)
        # A little noise keeps the classifier from leaning on the exact edge profile of a render.
        letter, style = net(x + 0.05 * torch.randn_like(x)).split([KINDS[0], KINDS[3]], 1)
        targets = torch.from_numpy(wanted)
        letter = F.cross_entropy(letter, targets[:, 0], label_smoothing=0.02)
        style = F.cross_entropy(style, targets[:, 3], label_smoothing=0.02)
        run.update(letter + 0.5 * style, letter=letter, style=style)
    weights = {name: value.half() for name, value in run.ema.state_dict().items()}
    save_file(weights, MODEL_DIR / "classifier.safetensors")
    (MODEL_DIR / "classifier.safetensors").chmod(0o644)
    command_ceiling(args)


def command_ceiling(args):
    """Scores the reference renders, and these through the autoencoder where there is one: what is attainable."""
    masks, attributes = load_data(args, "reference")
    rng = np.random.default_rng(9)
    x = paint(masks, attributes, rng)
    images = {"renders": x}
    if (args.work / "vae.pt").is_file():
        vae = load_vae(args)
        with torch.no_grad():
            decoded = [vae.decode(vae.encode(part).latent_dist.mode()).sample for part in x[:1040].split(104)]
        images["autoencoder"] = torch.cat(decoded)
    for name, part in images.items():
        part, wanted = ((part + 1) / 2).clamp(0, 1).numpy(), attributes[: len(part)]
        print(name, "all", score(part, wanted))
        for i, style in enumerate(STYLES):
            kept = wanted[:, 3] == i
            print(name, style, score(part[kept], wanted[kept]))


# --------------------------------------------------------------------------------------- export


def command_export(args):
    """Writes the pipeline directory in float16."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    model = Words(args)
    model.load_state_dict(torch.load(args.work / "words.pt"))
    vae = load_vae(args)
    factor = load_file(args.work / "latents.safetensors")["factor"].item()
    vae.register_to_config(scaling_factor=round(factor, 6))
    # The steps and flags of Stable Diffusion's; its schedule ends at a signal of 0.07, which would
    # leak the colour of large areas into the initial noise, so the betas are DDPM's.
    scheduler = DDIMScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon",
    )
    pipe = StableDiffusionPipeline(
        vae=vae.half(), unet=model.unet.half(), text_encoder=model.text.half(), scheduler=scheduler,
        tokenizer=CLIPTokenizer.from_pretrained(args.work / "tokenizer"), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(args.out, safe_serialization=True)
    # New versions of transformers write tokenizer.json alone, and old ones read these.
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        shutil.copy(args.work / "tokenizer" / name, args.out / "tokenizer" / name)
    passing = {"_name_or_path", "name_or_path", "is_local", "local_files_only"}  # where it was made
    for path in args.out.rglob("*.json"):
        config = json.loads(path.read_text())
        if passing & config.keys():
            config = {key: value for key, value in config.items() if key not in passing}
            path.write_text(json.dumps(config, indent=2) + "\n")
    for path in args.out.rglob("*.safetensors"):  # written readable by the owner alone
        path.chmod(0o644)
    total = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {total} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("words-work"), help="data, checkpoints (%(default)s)")
    parser.add_argument("--fonts", default="/usr/share/fonts/truetype", help="font root (%(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads (%(default)s)")
    commands = parser.add_subparsers(required=True)

    def command(function, **options):
        sub = commands.add_parser(function.__name__.removeprefix("command_"), help=function.__doc__)
        sub.set_defaults(function=function)
        for name, default in options.items():
            if isinstance(default, bool):
                sub.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=default)
            else:
                sub.add_argument(f"--{name}", type=type(default), default=default, help="(default: %(default)s)")

    command(command_prompts)
    command(command_data)
    command(command_vae, resume=False, steps=1500, minutes=0.0, batch=32, lr=1e-3)
    command(command_latents, count=TRAIN_SIZE)
    command(command_tokenizer)
    command(command_text, resume=False, steps=600, minutes=0.0, batch=64, lr=2e-3)
    command(command_unet, resume=True, steps=100_000, minutes=0.0, batch=64, lr=1e-3, ema=0.999, seed=0)
    command(command_classifier, resume=False, steps=1200, minutes=0.0, batch=128)
    command(command_ceiling)
    command(command_export, out=MODEL_DIR)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.work.mkdir(parents=True, exist_ok=True)
    args.function(args)


if __name__ == "__main__":
    main()
