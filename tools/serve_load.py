#!/usr/bin/env python3
"""Many clients of `aquatint serve` at a time: how long they wait, whether each gets its own picture, and what happens when they leave.

    python tools/serve_load.py [--program target/release/aquatint] [--clients 64] [--jobs 200] [--steps 4] [MODEL.aqt]

1. clients x jobs requests of one picture each, all seeds different: every answer is compared, as bytes, with the file that `aquatint run`
   writes; times from request to answer, and of the whole beside one `aquatint run` of as many pictures, one at a time.
2. half of the clients leave in the middle: the others get their pictures, and nothing is left waiting.
3. kill -9, and a new start: seconds until it answers.

Memory is the resident size of the server before, and after each part. Needs nothing but Python.
"""

import argparse
import base64
import http.client
import json
import pathlib
import random
import re
import signal
import statistics
import subprocess
import tempfile
import threading
import time


class Server:
    def __init__(self, program, model):
        self.command = [program, "serve", *([model] if model else []), "--port", "0", "--device", "cpu", "--max-queue", "100000"]
        self.begin()

    def begin(self):
        begun = time.perf_counter()
        self.child = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        self.address = re.search(r"http://([^ ]+)", self.child.stdout.readline())[1]
        assert get(self.address, "/health")["status"] == "ok"
        return time.perf_counter() - begun

    def memory(self):
        status = pathlib.Path(f"/proc/{self.child.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def get(address, path):
    connection = http.client.HTTPConnection(address, timeout=600)
    connection.request("GET", path)
    return json.loads(connection.getresponse().read())


def ask(connection, prompt, seed, steps):
    body = json.dumps({"prompt": prompt, "seed": seed, "steps": steps})
    connection.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    data = json.loads(answer.read())
    assert answer.status == 200, data
    return base64.b64decode(data["data"][0]["b64_json"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", metavar="MODEL.aqt")
    parser.add_argument("--program", default="target/release/aquatint", help="(default: %(default)s)")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--prompt", default="Q")
    args = parser.parse_args()
    total = args.clients * args.jobs

    with tempfile.TemporaryDirectory() as folder:
        model = [args.model] if args.model else []
        run = [args.program, "run", *model, "-p", args.prompt, "--seed", "0", "--n-imgs", str(total), "--steps", str(args.steps)]
        begun = time.perf_counter()
        subprocess.run([*run, "--batch-size", "1", "--quiet", "--device", "cpu", "-o", f"{folder}/%06d.png"], check=True)
        alone = time.perf_counter() - begun
        server = Server(args.program, args.model)
        before = server.memory()
        # The model's name stands in the text: a picture by this server tells how to rename the others'.
        waits, wrong = [], []

        def client(number):
            connection = http.client.HTTPConnection(server.address, timeout=3600)
            for job in range(args.jobs):
                seed = number * args.jobs + job
                begin = time.perf_counter()
                png = ask(connection, args.prompt, seed, args.steps)
                waits.append(time.perf_counter() - begin)
                if pixels(png) != pixels(pathlib.Path(f"{folder}/{seed:06}.png").read_bytes()):
                    wrong.append(seed)

        begun = time.perf_counter()
        together(client, args.clients)
        seconds = time.perf_counter() - begun
        assert len(waits) == total and not wrong, f"{len(waits)} of {total} answers, {len(wrong)} wrong"
        waits.sort()
        print(f"{total} pictures of {args.steps} steps for {args.clients} clients: all right")
        print(f"wait: p50 {waits[total // 2]:.3f} s, p99 {waits[total * 99 // 100]:.3f} s")
        print(f"{seconds / total * 1e3:.2f} ms a picture; aquatint run, one at a time, {alone / total * 1e3:.2f} ms: {seconds / alone:.3f}")
        print(f"memory: {before:.1f} MB before, {server.memory():.1f} MB after")

    def leaver(number):
        connection = http.client.HTTPConnection(server.address, timeout=3600)
        chance = random.Random(number)
        for job in range(20):
            if number % 2 == 0:
                ask(connection, args.prompt, job, args.steps)
                continue
            body = json.dumps({"prompt": args.prompt, "steps": 50, "n": 8})
            connection.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
            time.sleep(chance.random() * 0.05)
            connection.close()

    begun = time.perf_counter()
    together(leaver, args.clients)
    last = time.perf_counter()
    while get(server.address, "/health")["waiting"]:
        time.sleep(0.001)
    ask(http.client.HTTPConnection(server.address, timeout=600), args.prompt, 1, args.steps)
    free = time.perf_counter() - last
    print(f"half of the clients left {20 * (args.clients // 2)} times: the others were served in {last - begun:.1f} s, free after {free:.3f} s")
    print(f"memory: {server.memory():.1f} MB")
    server.child.send_signal(signal.SIGKILL)
    server.child.wait()
    times = []
    for _ in range(5):
        times.append(server.begin())
        server.child.send_signal(signal.SIGKILL)
        server.child.wait()
    print(f"start to answer after kill -9: {statistics.median(times) * 1e3:.0f} ms")


def pixels(png):
    """The image data of a PNG: all IDAT chunks. Texts name the model differently."""
    at, data = 8, b""
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] in (b"IHDR", b"IDAT"):
            data += png[at + 8 : at + 8 + length]
        at += 12 + length
    return data


def together(work, count):
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
