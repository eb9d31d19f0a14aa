#!/usr/bin/env python3
"""Clients that others wrote, against `aquatint serve`: OpenAI's Python SDK (plain, streaming, edits), webuiapi, and the requests that
SillyTavern and Open WebUI send, as their sources have them.

    python tools/serve_clients.py [--program target/release/aquatint] [MODEL.aqt]

Starts a server of its own at a free port, with a token, and ends it. Pictures are compared, byte by byte of their pixels, with those
of `aquatint run`. The default is the model of letters; with a model that encodes pictures, edits are made too. Needs openai, webuiapi,
requests, pillow.
"""

import argparse
import base64
import io
import json
import os
import pathlib
import re
import subprocess
import tempfile

import openai
import PIL.Image
import requests
import webuiapi

TOKEN = "a token of this run"


class Server:
    """`aquatint serve` at a free port."""

    def __init__(self, program, model, *more):
        command = [program, "serve", *([model] if model else []), "--port", "0", "--device", "cpu", *more]
        self.child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "AQUATINT_TOKEN": TOKEN})
        line = self.child.stdout.readline()
        self.url = re.search(r"http://[^ ]+", line)[0]
        self.port = int(self.url.rsplit(":", 1)[1])

    def end(self):
        self.child.terminate()
        assert self.child.wait(timeout=10) == 0, "the server did not end in order"


def pixels(data):
    image = PIL.Image.open(io.BytesIO(data)) if isinstance(data, bytes) else data
    return image.size, image.convert("RGB").tobytes()


def run(args, prompt, seed, steps, *more):
    """What `aquatint run` makes of the same."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "a.png"
        model = [args.model] if args.model else []
        command = [args.program, "run", *model, "-p", prompt, "--seed", str(seed), "--steps", str(steps), *more]
        subprocess.run([*command, "--quiet", "--device", "cpu", "-o", str(out)], check=True)
        return pixels(out.read_bytes())


def with_openai(args, server, prompt):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0)
    model = client.models.list().data[0].id
    extra = {"seed": 5, "steps": 4}
    answer = client.images.generate(model=model, prompt=prompt, n=2, response_format="b64_json", extra_body=extra)
    for k, datum in enumerate(answer.data):
        assert pixels(base64.b64decode(datum.b64_json)) == run(args, prompt, 5 + k, 4), f"picture {k}"
    events = list(client.images.generate(model=model, prompt=prompt, stream=True, partial_images=2, extra_body=extra))
    done = [event for event in events if event.type == "image_generation.completed"]
    assert len(done) == 1 and pixels(base64.b64decode(done[0].b64_json)) == run(args, prompt, 5, 4)
    try:
        client.images.generate(model="nothing", prompt=prompt)
        raise AssertionError("an unknown model was taken")
    except openai.NotFoundError as e:
        assert e.code == "model_not_found", e
    try:
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()
        raise AssertionError("a wrong token was taken")
    except openai.AuthenticationError as e:
        assert e.code == "invalid_api_key", e
    if args.model:
        first = base64.b64decode(answer.data[0].b64_json)
        size = PIL.Image.open(io.BytesIO(first)).size
        mask = io.BytesIO()
        PIL.Image.new("RGBA", size, (0, 0, 0, 0)).save(mask, "PNG")
        edit = client.images.edit(image=("a.png", first), mask=("m.png", mask.getvalue()), prompt=prompt, extra_body={"steps": "4"})
        assert edit.data[0].b64_json
    print(f"openai {openai.__version__}: generations, streaming, errors{', edits' if args.model else ''}")


def with_webuiapi(args, server, prompt):
    api = webuiapi.WebUIApi(host="127.0.0.1", port=server.port)
    api.set_auth("anybody", TOKEN)
    size = api.txt2img(prompt=prompt, seed=7, steps=1, width=None, height=None).image.size
    result = api.txt2img(prompt=prompt, seed=7, steps=4, cfg_scale=3, sampler_name="Euler", scheduler="automatic", width=size[0], height=size[1])
    assert pixels(result.image) == run(args, prompt, 7, 4, "-g", "3", "--sampler", "euler", "--sigmas", "normal")
    assert result.info["seed"] == 7 and "Steps: 4" in result.info["infotexts"][0]
    assert api.get_options()["sd_model_checkpoint"] in [model["title"] for model in api.get_sd_models()]
    api.util_set_model(api.util_get_model_names()[0])
    assert api.get_progress()["progress"] == 0
    info = api.png_info(result.image)
    assert info is not None
    assert {"Euler", "DDIM"} <= {sampler["name"] for sampler in api.get_samplers()} and api.get_schedulers() and api.get_memory()
    api.interrupt()
    api.skip()
    if args.model:
        assert api.img2img(images=[result.image], prompt=prompt, steps=4, denoising_strength=0.5, width=size[0], height=size[1]).image
    print("webuiapi: txt2img, options, models, progress, png-info" + (", img2img" if args.model else ""))


def as_sillytavern(server, prompt):
    """public/scripts/extensions/stable-diffusion/index.js through src/endpoints/stable-diffusion.js."""
    basic = {"Authorization": "Basic " + base64.b64encode(f"user:{TOKEN}".encode()).decode()}
    call = lambda method, path, **more: requests.request(method, server.url + path, headers=basic, **more)
    options = call("GET", "/sdapi/v1/options")
    options.raise_for_status()
    assert "forge_preset" not in options.json()
    for path in ["samplers", "schedulers", "sd-models", "upscalers", "latent-upscale-modes", "sd-vae", "sd-modules", "progress"]:
        call("GET", f"/sdapi/v1/{path}").raise_for_status()
    call("POST", "/sdapi/v1/options", json={"sd_model_checkpoint": options.json()["sd_model_checkpoint"]}).raise_for_status()
    progress = call("GET", "/sdapi/v1/progress").json()
    assert progress["progress"] == 0.0 and progress["state"]["job_count"] == 0
    body = {
        "url": server.url, "auth": f"user:{TOKEN}", "prompt": prompt, "negative_prompt": "bad", "sampler_name": "DDIM",
        "scheduler": "Automatic", "steps": 3, "cfg_scale": 3, "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent",
        "hr_scale": 2, "hr_additional_modules": [], "denoising_strength": 0.7, "hr_second_pass_steps": 0, "seed": None,
        "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic", "forge_additional_modules": []},
        "override_settings_restore_afterwards": True, "clip_skip": 1, "save_images": True, "send_images": True,
        "do_not_save_grid": False, "do_not_save_samples": False,
    }
    answer = call("POST", "/sdapi/v1/txt2img", json=body)
    answer.raise_for_status()
    assert pixels(base64.b64decode(answer.json()["images"][0]))[0][0] > 0
    call("POST", "/sdapi/v1/interrupt").raise_for_status()
    print("SillyTavern's requests: all its places, txt2img, interrupt")


def as_open_webui(server, prompt):
    """backend/open_webui/routers/images.py."""
    basic = {"authorization": "Basic " + base64.b64encode(f":{TOKEN}".encode()).decode()}
    options = requests.get(f"{server.url}/sdapi/v1/options", headers=basic).json()
    models = requests.get(f"{server.url}/sdapi/v1/sd-models", headers=basic).json()
    assert all({"title", "model_name"} <= model.keys() for model in models)
    options["sd_model_checkpoint"] = models[0]["title"]
    assert requests.post(f"{server.url}/sdapi/v1/options", json=options, headers=basic).status_code == 200
    body = {"prompt": prompt, "batch_size": 2, "steps": 2}
    answer = requests.post(f"{server.url}/sdapi/v1/txt2img", json=body, headers=basic).json()
    assert len(answer["images"]) == 2 and json.loads(answer["info"])["seed"] >= 0
    bearer = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    body = {"model": models[0]["model_name"], "prompt": prompt, "n": 1, "response_format": "b64_json"}
    answer = requests.post(f"{server.url}/v1/images/generations", json=body, headers=bearer).json()
    assert pixels(base64.b64decode(answer["data"][0]["b64_json"]))
    print("Open WebUI's requests: both of its ways")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", metavar="MODEL.aqt")
    parser.add_argument("--program", default="target/release/aquatint", help="(default: %(default)s)")
    parser.add_argument("--prompt", default="Q")
    args = parser.parse_args()
    server = Server(args.program, args.model)
    try:
        with_openai(args, server, args.prompt)
        with_webuiapi(args, server, args.prompt)
        as_sillytavern(server, args.prompt)
        as_open_webui(server, args.prompt)
    finally:
        server.end()


if __name__ == "__main__":
    main()
