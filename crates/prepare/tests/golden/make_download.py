"""Makes the golden values of tests/download.rs with img2dataset 1.47.0 (webdataset 0.2, exifread-nocycle 3.0,
pyarrow 26, Pillow):

    cargo run --release -p calotype-prepare --example data -- emoji EMOJI --resolution 72 --drawings 8
    python make_download.py EMOJI/emoji-000000.tar

Pictures and a list go to download/, and what img2dataset says of them to download/expected.json. The list's addresses
have a host that does not exist; both programs reach the pictures through a proxy.
"""

import http.server
import io
import json
import os
import pathlib
import random
import shutil
import sys
import tarfile
import tempfile
import threading
import urllib.parse

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

HERE = pathlib.Path(__file__).parent / "download"
NAMES = ["plain.jpg", "turned.jpg", "clear.png", "small.png", "soft.webp", "wide.jpg", "grey.jpg", "cut.jpg", "notes.jpg"]


def make_pictures(emoji):
    with tarfile.open(emoji) as tar:
        drawings = [Image.open(io.BytesIO(tar.extractfile(m).read())).convert("RGB") for m in tar if m.name.endswith(".png")]
    HERE.mkdir(exist_ok=True)
    save = lambda picture, name, **how: picture.save(HERE / name, **how)
    save(drawings[0], "plain.jpg", quality=90)
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Calotype", "Camera obscura"
    exif[0x011A], exif[0x011B] = 72.0, 72.0
    exif.get_ifd(0x8769)[0x829A] = IFDRational(10, 600)
    exif.get_ifd(0x8769)[0x9003] = "1841:02:08 12:00:00"
    exif.get_ifd(0x8769)[0x8827] = 3
    save(drawings[1], "turned.jpg", quality=90, exif=exif)
    clear = drawings[2].convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    save(clear, "clear.png")
    save(drawings[3].resize((24, 17)), "small.png")
    save(drawings[4], "soft.webp", quality=80)
    save(drawings[5].resize((72, 31)), "wide.jpg", quality=90)
    save(drawings[6].convert("L"), "grey.jpg", quality=90)
    plain = (HERE / "plain.jpg").read_bytes()
    # A file that ends in its header: what decoders make of pictures that end later differs.
    (HERE / "cut.jpg").write_bytes(plain[:100])
    (HERE / "notes.jpg").write_bytes(b"These are notes, and no picture.\n")


def make_list():
    count = len(NAMES)
    columns = {
        "URL": [f"http://pictures.example/{name}" for name in NAMES],
        "TEXT": [f"picture {i}, Ünïcode “{name}”" if i != 3 else None for i, name in enumerate(NAMES)],
        "SAMPLE_ID": list(range(2**53, 2**53 + count)),
        "similarity": [0.25 + i / 7 for i in range(count)],
        "LICENSE": ["?" if i % 2 else None for i in range(count)],
        "tags": [["a", "b"][: i % 3] for i in range(count)],
        "good": [i % 2 == 0 for i in range(count)],
    }
    pq.write_table(pa.table(columns), HERE / "list.parquet")


class Proxy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        content = (HERE / urllib.parse.urlparse(self.path).path.lstrip("/")).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def run(mode, **options):
    from img2dataset import download

    out = tempfile.mkdtemp()
    shutil.rmtree(out)
    download(
        url_list=str(HERE / "list.parquet"),
        input_format="parquet",
        url_col="URL",
        caption_col="TEXT",
        output_folder=out,
        output_format="webdataset",
        resize_mode=mode,
        image_size=40,
        skip_reencode=True,
        number_sample_per_shard=6,
        thread_count=2,
        save_additional_columns=["SAMPLE_ID", "similarity", "LICENSE", "tags", "good"],
        **options,
    )
    result = {"files": sorted(f for f in os.listdir(out)), "samples": {}, "stats": {}}
    for name in result["files"]:
        path = os.path.join(out, name)
        if name.endswith(".tar"):
            with tarfile.open(path) as tar:
                parts = {m.name: tar.extractfile(m).read() for m in tar}
            for part in sorted(p for p in parts if p.endswith(".json")):
                key = part[: -len(".json")]
                # Pairs, for their order counts.
                meta = list(json.loads(parts[part]).items())
                members = sorted(p[len(key) + 1 :] for p in parts if p.startswith(key + "."))
                result["samples"][key] = {"members": members, "text": parts[key + ".txt"].decode(), "json": meta}
        elif name.endswith("_stats.json"):
            stats = json.load(open(path))
            result["stats"][name] = {k: stats[k] for k in ["count", "successes", "failed_to_download", "failed_to_resize"]}
        elif name.endswith(".parquet"):
            result.setdefault("columns", [[f.name, str(f.type)] for f in pq.read_schema(path)])
    return result


def main():
    make_pictures(sys.argv[1])
    make_list()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["http_proxy"] = f"http://127.0.0.1:{server.server_port}"
    expected = {
        "no": run("no"),
        "border": run("border"),
        "keep_ratio": run("keep_ratio", resize_only_if_bigger=True, compute_hash="md5"),
        "keep_ratio_largest": run("keep_ratio_largest", extract_exif=False),
        "center_crop": run("center_crop", min_image_size=20, max_aspect_ratio=2, compute_hash=None),
    }
    with open(HERE / "expected.json", "w") as file:
        json.dump(expected, file, ensure_ascii=False, indent=0, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
