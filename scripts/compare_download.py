#!/usr/bin/env python3
"""Times `calotype data download` and img2dataset on the same images, server and cores, in turn, and compares the pixels.

    python scripts/compare_download.py --calotype PROGRAM [--images 4000] [--side 512] [--quality 95] [--rounds 3]
        [--size 256] [--mode border] [--processes N] [--threads 32]

The server (of this script, on the loopback interface) has 48 JPEGs of noise with a photograph's spectrum and of shapes. Both sides
shrink them by area to SIZE and encode them as JPEG of the same quality. The rate of img2dataset is that of its workers' own
account, without the time that Python takes to start; that of Calotype is by its account, which counts everything. Pixels are
compared, as PSNR, with OpenCV's INTER_AREA of the decoded original. The Python that runs this needs img2dataset.
"""

import argparse
import asyncio
import glob

import json
import math
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time

import cv2
import numpy as np

KINDS = 48

def photograph(rng, side):
    """Noise of a spectrum that falls as photographs' does, correlated between channels, with some shapes."""
    frequency = np.sqrt(np.fft.fftfreq(side)[:, None] ** 2 + np.fft.rfftfreq(side)[None] ** 2)
    frequency[0, 0] = 1
    channels = []
    for _ in range(3):
        spectrum = (rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)) / frequency**1.3
        channels.append(np.fft.irfft2(spectrum, s=(side, side)))
    image = np.stack(channels, -1)
    image = 0.8 * image[..., :1] + 0.35 * image
    image = np.clip((image - image.mean()) / image.std() * 50 + 128, 0, 255).astype(np.uint8)
    for _ in range(6):
        colour = [int(level) for level in rng.integers(0, 255, 3)]
        centre = [int(at) for at in rng.integers(0, side, 2)]
        cv2.circle(image, centre, int(rng.integers(10, 80)), colour, -1, cv2.LINE_AA)
    return image

def serve(sock, replies):
    async def answer(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(replies[int(head[5 : head.index(b" ", 5)]) % len(replies)])
                await writer.drain()
                if b"onnection: close" in head:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def forever():
        async with await asyncio.start_server(answer, sock=sock, backlog=4096) as server:
            await server.serve_forever()

    asyncio.run(forever())

def run_ours(args, urls, out):
    words = [args.calotype, "data", "download", urls, out, "--allow-private", "--number-sample-per-shard=1000", "--json"]
    words += [f"--image-size={args.size}", f"--resize-mode={args.mode}", f"--encode-quality={args.quality}", "--per-host=256"]
    account = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return account["taken"] / account["seconds"], account["written"]

# In a process of its own, whose workers' output stays out of the way.
PEER = """
import json, sys
from img2dataset import download
settings = json.loads(sys.argv[1])
if __name__ == "__main__":
    download(output_format="webdataset", input_format="txt", number_sample_per_shard=1000, disallowed_header_directives=[], **settings)
"""

def run_peer(args, urls, out):
    settings = dict(url_list=urls, output_folder=out, processes_count=args.processes, thread_count=args.threads)
    settings |= dict(image_size=args.size, resize_mode=args.mode, encode_quality=args.quality)
    subprocess.run([sys.executable, "-c", PEER, json.dumps(settings)], check=True, capture_output=True)
    stats = [json.load(open(name)) for name in glob.glob(f"{out}/*_stats.json")]
    seconds = max(s["end_time"] for s in stats) - min(s["start_time"] for s in stats)
    return sum(s["count"] for s in stats) / seconds, sum(s["successes"] for s in stats)

def quality(out, expected):
    """Mean PSNR, and mean bytes of an image, of the first of each of the server's images."""
    psnr, lengths = [], []
    with tarfile.open(sorted(glob.glob(f"{out}/*.tar"))[0]) as tar:
        members = {member.name: member for member in tar.getmembers()}
        for name in sorted(members)[: 2 * KINDS]:
            if name.endswith(".json"):
                facts = json.load(tar.extractfile(members[name]))
                image = tar.extractfile(members[name.replace(".json", ".jpg")]).read()
                pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR).astype(float)
                wanted = expected[int(facts["url"].rsplit("/", 1)[1]) % KINDS]
                psnr.append(10 * math.log10(255**2 / max(np.mean((pixels - wanted) ** 2), 1e-9)))
                lengths.append(len(image))
    return float(np.mean(psnr)), float(np.mean(lengths))

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calotype", required=True)
    parser.add_argument("--mode", default="border")
    for name, default in [("images", 4000), ("side", 512), ("size", 256), ("quality", 95), ("rounds", 3), ("threads", 32)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    originals = [cv2.imencode(".jpg", photograph(rng, args.side), [cv2.IMWRITE_JPEG_QUALITY, 90])[1] for _ in range(KINDS)]
    decoded = [cv2.imdecode(original, cv2.IMREAD_COLOR) for original in originals]
    expected = [cv2.resize(image, (args.size, args.size), interpolation=cv2.INTER_AREA).astype(float) for image in decoded]
    head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    replies = [head % len(original) + original.tobytes() for original in originals]
    sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
    server = multiprocessing.get_context("fork").Process(target=serve, args=(sock, replies), daemon=True)
    server.start()
    folder = tempfile.mkdtemp(prefix="compare-download-")
    try:
        urls = f"{folder}/urls.txt"
        with open(urls, "w") as file:
            file.writelines(f"http://127.0.0.1:{sock.getsockname()[1]}/{i}\n" for i in range(args.images))
        rates = {"calotype": [], "img2dataset": []}
        for turn in range(args.rounds):
            for name, run in [("calotype", run_ours), ("img2dataset", run_peer)]:
                out = f"{folder}/{name}"
                shutil.rmtree(out, ignore_errors=True)
                time.sleep(1)
                rate, good = run(args, urls, out)
                assert good == args.images, f"{name}: {good} of {args.images} images"
                rates[name].append(rate)
                print(f"round {turn + 1}: {name:12} {rate:7.0f} images/s", flush=True)
        for name, found in rates.items():
            psnr, length = quality(f"{folder}/{name}", expected)
            print(f"{name:12} median {np.median(found):7.0f} images/s, PSNR {psnr:.2f} dB, {length / 1e3:.1f} kB an image")
        ratios = [ours / peer for ours, peer in zip(rates["calotype"], rates["img2dataset"])]
        print(f"ratio {np.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    finally:
        server.terminate()
        shutil.rmtree(folder, ignore_errors=True)

if __name__ == "__main__":
    main()
