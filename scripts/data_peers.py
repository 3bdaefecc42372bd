"""Differences between Calotype's data stages and the Python libraries that do the same; see data-peers.sh.

A check is a function with a name, which gets a folder of its own and raises if the sides differ; what it returns is printed.
"""
import argparse
import gzip
import hashlib
import io
import json
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from pathlib import Path

CHECKS = {}
DATA = []


def check(name):
    """Registers a check."""

    def register(function):
        CHECKS[name] = function
        return function

    return register


def data(*words):
    """Runs a stage; its output."""
    run = subprocess.run([*DATA, *map(str, words)], capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {run.stderr.strip()}")
    return run.stdout


def same(what, ours, theirs):
    if ours != theirs:
        raise AssertionError(f"{what}: {str(ours)[:200]} is not {str(theirs)[:200]}")


# Samples that both sides write: a key, an image, a caption, a class and an array.


def samples(count):
    import numpy as np
    from PIL import Image

    for i in range(count):
        random = np.random.default_rng(i)
        jpeg = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (24, 16 + i % 9, 3), dtype=np.uint8)).save(jpeg, format="JPEG")
        array = random.standard_normal((3, 1 + i % 5)).astype("float16" if i % 2 else "float32")
        yield {
            "key": f"dir/{i:05d}",
            "jpg": jpeg.getvalue(),
            "txt": f"caption {i}: größer \N{GRINNING FACE}",
            "cls": i % 7 - 3,
            "npy": array,
            "json": {"number": i, "half": i / 2, "none": None},
        }


def npy(array):
    import numpy as np

    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def as_parts(sample):
    """The parts of a sample in a tar."""
    return {
        "jpg": sample["jpg"],
        "txt": sample["txt"].encode(),
        "cls": str(sample["cls"]).encode(),
        "npy": npy(sample["npy"]),
        "json": json.dumps(sample["json"]).encode(),
    }


def write_tar(path, rows):
    with tarfile.open(path, "w") as tar:
        for row in rows:
            for extension, part in as_parts(row).items():
                member = tarfile.TarInfo(f"{row['key']}.{extension}")
                member.size = len(part)
                tar.addfile(member, io.BytesIO(part))


def read_webdataset(folder):
    """All samples by key, as the webdataset library reads them."""
    import webdataset

    urls = sorted(str(path) for path in Path(folder).glob("*.tar"))
    rows = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    return {row["__key__"]: {k: v for k, v in row.items() if not k.startswith("__")} for row in rows}


def read_streaming(folder, validate=None):
    """All samples in order, as Streaming reads them, from a copy: it writes beside what it reads."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    copy = Path(str(folder) + "-copy")
    dataset = StreamingDataset(
        local=str(copy), remote=str(folder), shuffle=False, batch_size=1, validate_hash=validate, allow_unsafe_types=True
    )
    rows = [dataset[i] for i in range(dataset.num_samples)]
    shutil.rmtree(copy)
    return rows


COLUMNS = {"jpg": "jpeg", "txt": "str", "cls": "int", "npy": "ndarray", "json": "json", "__key__": "str"}
PACKINGS = [(None, []), ("zstd", ["sha1", "xxh64"]), ("zstd:19", ["md5", "sha3_256"]), ("gz:3", []), ("br:4", []), ("snappy", ["xxh128"])]


def write_streaming(folder, rows, compression, hashes, size_limit=1 << 14):
    from streaming import MDSWriter

    with MDSWriter(
        out=str(folder), columns=COLUMNS, compression=compression, hashes=hashes, size_limit=size_limit
    ) as writer:
        for row in rows:
            writer.write({**{name: row[name] for name in COLUMNS if name != "__key__"}, "__key__": row["key"]})


def packing_words(compression, hashes):
    words = ["--compression", compression] if compression else []
    return words + (["--hashes", ",".join(hashes)] if hashes else [])


def equal_pixels(what, image, encoded):
    from PIL import Image

    same(what, image.tobytes(), Image.open(io.BytesIO(encoded)).tobytes())


@check("mds: streaming reads ours")
def streaming_reads(folder):
    rows = list(samples(60))
    (folder / "tar").mkdir()
    write_tar(folder / "tar" / "all.tar", rows)
    for number, (compression, hashes) in enumerate(PACKINGS):
        out = folder / f"mds{number}"
        words = packing_words(compression, hashes)
        data("convert", folder / "tar", out, "--to", "mds", "--shard-bytes", 1 << 14, *words)
        for validate in [None, *hashes]:
            found = read_streaming(out, validate)
            same(f"{compression} samples", len(found), len(rows))
            for ours, row in zip(found, rows):
                same("key", ours["__key__"], row["key"])
                same("text", ours["txt"], row["txt"])
                same("class", ours["cls"], row["cls"])
                same("json", ours["json"], row["json"])
                same("array", (ours["npy"].dtype, ours["npy"].tolist()), (row["npy"].dtype, row["npy"].tolist()))
                equal_pixels("image", ours["jpg"], row["jpg"])
    return f"{len(rows)} samples, {len(PACKINGS)} packings"


@check("mds: ours reads streaming")
def reads_streaming(folder):
    rows = list(samples(60))
    for number, (compression, hashes) in enumerate(PACKINGS):
        source, out = folder / f"mds{number}", folder / f"tar{number}"
        write_streaming(source, rows, compression, hashes)
        data("convert", source, out)
        found = read_webdataset(out)
        same("keys", list(found), [row["key"] for row in rows])
        for row in rows:
            expected = as_parts(row)
            # Streaming writes the image as it decoded it, but for JPEG that are given as bytes.
            same(f"parts of {row['key']} ({compression})", found[row["key"]], expected)
    return f"{len(rows)} samples, {len(PACKINGS)} packings"


@check("mds: files byte for byte")
def equal_files(folder):
    rows = list(samples(200))
    (folder / "tar").mkdir()
    write_tar(folder / "tar" / "all.tar", rows)
    for size_limit in (3000, 1 << 14, 1 << 26):
        theirs, ours = folder / f"theirs{size_limit}", folder / f"ours{size_limit}"
        write_streaming(theirs, rows, None, ["sha256"], size_limit)
        words = ["--to", "mds", "--shard-bytes", size_limit, "--hashes", "sha256"]
        data("convert", folder / "tar", ours, *words)
        files = {path.name: path.read_bytes() for path in theirs.iterdir()}
        same("files", {path.name: path.read_bytes() for path in ours.iterdir() if path.is_file()}, files)
    return f"{len(rows)} samples, three limits"


@check("mds: synthetic data")
def synthetic(folder):
    words = ["--samples", 20, "--resolution", 64, "--shard-samples", 7]
    for preset in ("mosaic", "mosaic-latents", "mlperf", "nemo-precached", "vit"):
        data("synth", folder / preset, "--preset", preset, "--to", "mds", "--compression", "zstd", *words)
        data("synth", folder / f"{preset}-tar", "--preset", preset, *words)
        rows = read_streaming(folder / preset)
        tars = read_webdataset(folder / f"{preset}-tar")
        same("samples", [row["__key__"] for row in rows], list(tars))
        for row in rows:
            for name, part in tars[row["__key__"]].items():
                value = row[name]
                if hasattr(value, "dtype") and value.shape:
                    same(name, npy(value), part)
                elif hasattr(value, "tobytes") and hasattr(value, "mode"):
                    equal_pixels(name, value, part)
                else:
                    same(name, value if isinstance(value, bytes) else str(value).encode(), part)
    return "five presets"


@check("webdataset: the library reads ours")
def webdataset_reads(folder):
    rows = list(samples(50))
    # Names that a USTAR header cannot hold: 102 bytes, a long name, folders that cannot be divided.
    for row, key in zip(rows[3:], ["写" * 34, "x" * 400, "フォルダ" * 30 + "/" + "写" * 40]):
        row["key"] = key
    (folder / "tar").mkdir()
    write_tar(folder / "tar" / "all.tar", rows)
    data("convert", folder / "tar", folder / "out", "--shard-samples", 7)
    found = read_webdataset(folder / "out")
    same("keys", list(found), [row["key"] for row in rows])
    for row in rows:
        same(row["key"], found[row["key"]], as_parts(row))
    same("shards", len(list((folder / "out").glob("*.tar"))), 8)
    return f"{len(rows)} samples, 8 shards"


@check("webdataset: ours reads the library's")
def reads_webdataset(folder):
    import webdataset

    rows = list(samples(50))
    (folder / "in").mkdir()
    with webdataset.ShardWriter(str(folder / "in" / "part-%03d.tar"), maxcount=9, verbose=0) as writer:
        for row in rows:
            writer.write({"__key__": row["key"], **{k: row[k] for k in ("jpg", "txt", "cls", "npy", "json")}})
    theirs = read_webdataset(folder / "in")
    same("samples", len(theirs), len(rows))
    data("convert", folder / "in", folder / "out", "--shard-samples", 20)
    same("samples", read_webdataset(folder / "out"), theirs)
    # The same shards of gzip, by their names and under the name of others.
    (folder / "packed").mkdir()
    for number, shard in enumerate(sorted((folder / "in").glob("*.tar"))):
        name = shard.name + ".gz" if number % 2 else shard.name
        (folder / "packed" / name).write_bytes(gzip.compress(shard.read_bytes()))
    data("convert", folder / "packed", folder / "unpacked", "--shard-samples", 20)
    same("samples of gzip", read_webdataset(folder / "unpacked"), theirs)
    return f"{len(rows)} samples, digest {hashlib.sha256(repr(theirs).encode()).hexdigest()[:12]}"


@check("pickles: Python reads ours")
def python_reads_pickles(folder):
    import pickle

    tests = Path(__file__).parent.parent / "crates" / "data" / "tests"
    subprocess.run([sys.executable, tests / "make_pickles.py", "read"], check=True, stdout=subprocess.DEVNULL)
    data("synth", folder / "shards", "--preset", "nemo-precached", "--samples", 6, "--shard-samples", 2, "--resolution", 64)
    data("index", folder / "shards", "--wdinfo")
    with open(folder / "shards" / "wdinfo.pkl", "rb") as file:
        info = pickle.load(file)
    same("shards", info["tar_files"], sorted(path.name for path in (folder / "shards").glob("*.tar")))
    same("counts", (info["chunk_size"], info["total_key_count"]), (2, 6))
    return "golden files, and a list of 3 shards"


@check("coco: pandas makes the same list")
def coco_list(folder):
    import pandas

    captions = [
        {"image_id": i * 7919 % 2500 * 3 + 1, "id": i * 10007 % 9973, "caption": f"a cat {i}, \"two\"\ndogs"} for i in range(9000)
    ]
    images = [{"id": p * 3 + 1, "height": 480, "width": 640, "file_name": f"{p}.jpg", "coco_url": ""} for p in range(2500)]
    annotations = folder / "captions_val2014.json"
    annotations.write_text(json.dumps({"images": images, "annotations": captions}))
    rows = pandas.DataFrame(captions).sample(frac=1, random_state=2023)
    rows = rows.drop_duplicates(subset=["image_id"], keep="first")[:2000].sort_values(by=["id"])
    rows["caption"] = rows["caption"].str.replace("\n", "").str.strip()
    data("coco", annotations, folder / "out", "--count", 2000)
    (ours,) = (folder / "out").rglob("*.tsv")
    same("list", ours.read_text(), rows.to_csv(sep="\t", index=False))
    return f"{len(rows)} of {len(captions)} captions"


def run_checks(names, keep):
    results = {}
    for name in names:
        started = time.time()
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(keep) / name.replace(": ", "-").replace(" ", "-") if keep else Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            try:
                results[name] = {"equal": True, "detail": CHECKS[name](folder)}
            except Exception as error:
                traceback.print_exc()
                results[name] = {"equal": False, "detail": f"{type(error).__name__}: {error}"}
        results[name]["seconds"] = round(time.time() - started, 2)
        verdict = "equal " if results[name]["equal"] else "DIFFER"
        print(f"{verdict} {name:40} {results[name]['seconds']:6.1f} s  {results[name]['detail']}", flush=True)
    return results


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="program that runs the stages")
    parser.add_argument("--only", help="names of checks, or what they begin with, comma separated")
    parser.add_argument("--keep", help="folder for the datasets, which are deleted otherwise")
    parser.add_argument("--out", help="file for the results as JSON")
    parser.add_argument("--list", action="store_true", help="print the names of the checks")
    args = parser.parse_args()
    if args.list:
        print("\n".join(CHECKS))
        return 0
    DATA.extend(shlex.split(args.data))
    only = [part.strip() for part in args.only.split(",")] if args.only else [""]
    names = [name for name in CHECKS if any(name.startswith(part) for part in only)]
    if not names:
        print(f"no check begins with {args.only}; there are: {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    results = run_checks(names, args.keep)
    if args.out:
        Path(args.out).write_text(json.dumps(results, indent=2) + "\n")
    return 0 if all(result["equal"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
