"""Runs what inference-accuracy.sh describes."""

import argparse
import csv
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np

# Sides of the benchmark's pictures, which accuracy_coco.py takes and no others.
SIDE = 1024
KEPT = [5, 2, 9, 5]
# Started in place of accuracy_coco.py: the same program, with CLIP's weights from a file, for the published ones are fetched.
LAUNCHER = """
import os, runpy, sys
import open_clip
clip, tools = sys.argv.pop(1), sys.argv.pop(1)
original = open_clip.create_model_and_transforms
def of_file(name, pretrained, **rest):
    assert (name, pretrained) == ("ViT-B/32", "openai"), (name, pretrained)
    return original(name, pretrained=clip, force_quick_gelu=True, **rest)
open_clip.create_model_and_transforms = of_file
sys.path.insert(0, tools)
sys.argv[0] = os.path.join(tools, "accuracy_coco.py")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def make_inception(tools, home):
    """Made-up weights where the reference looks for the published ones."""
    import torch

    sys.path.insert(0, str(tools))
    from fid import inception as fid

    network = fid._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    network.Mixed_5b = fid.FIDInceptionA(192, pool_features=32)
    network.Mixed_5c = fid.FIDInceptionA(256, pool_features=64)
    network.Mixed_5d = fid.FIDInceptionA(288, pool_features=64)
    for name, channels in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        setattr(network, f"Mixed_{name}", fid.FIDInceptionC(768, channels_7x7=channels))
    network.Mixed_7b, network.Mixed_7c = fid.FIDInceptionE_1(1280), fid.FIDInceptionE_2(2048)
    generator = torch.Generator().manual_seed(1)
    state = network.state_dict()
    for value in state.values():
        if value.dim() == 4:
            value.copy_(torch.randn(value.shape, generator=generator) * (2.0 / value[0].numel()) ** 0.5)
        elif value.dim() == 2:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.02)
    path = home / "hub" / "checkpoints" / fid.FID_WEIGHTS_URL.split("/")[-1]
    path.parent.mkdir(parents=True)
    torch.save(dict(state), path)
    return path


def make_clip(folder):
    """A ViT-B/32 as open_clip publishes models."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(2)
    model = open_clip.create_model("ViT-B-32", force_quick_gelu=True)
    folder.mkdir()
    weights = folder / "open_clip_model.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
    config = dict(model_cfg=dict(open_clip.get_model_config("ViT-B-32"), quick_gelu=True))
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return weights


def pictures(count):
    """Pictures of shapes over ramps, each of its own colours."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    for number in range(count):
        random = np.random.default_rng(number)
        picture = np.stack([random.random() + (random.random(2) - 0.5) @ [x.ravel(), y.ravel()] for _ in range(3)], 1)
        picture = picture.reshape(SIDE, SIDE, 3)
        for _ in range(6):
            (across, down), radius = random.random(2), 0.05 + 0.25 * random.random()
            picture[(x - across) ** 2 + (y - down) ** 2 < radius**2] = random.random(3)
        picture += (random.random(picture.shape) - 0.5) * 0.1
        yield np.clip(picture * 255, 0, 255).astype(np.uint8)


def write_log(path, count):
    """As LoadGen writes it: in the order of completion, some samples twice with other bytes."""
    order = [int(sample) for sample in np.random.default_rng(7).permutation(count)]
    drawn = list(pictures(count + 1))
    with path.open("w") as file:
        file.write("[")
        for seq_id, sample in enumerate(order + order[:2]):
            data = drawn[sample if seq_id < count else count].tobytes().hex().upper()
            comma = "," if seq_id else ""
            file.write(f'{comma}\n{{ "seq_id" : {seq_id}, "qsl_idx" : {sample}, "data" : "{data}" }}')
        file.write("\n]\n")


def write_captions(path, count):
    """The columns of captions_source.tsv, with what quotes and blanks may do."""
    texts = ["a red bus \n", 'two "fast" dogs', "a cafe\u0301 by night", " ", "A CAT &amp; A DOG, on a bench. ", "word " * 90]
    texts = [text if text.strip() else "number {} of a row of trams" for text in texts]
    captions = [texts[number % 6].format(number) for number in range(count)]
    with path.open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["id", "image_id", "caption", "height", "width", "file_name", "coco_url"])
        table.writerows([n * 7, n * 3, text, 480, 640, f"{n}.jpg", f"http://x/{n}.jpg"] for n, text in enumerate(captions))


def write_statistics(path, inception, tools):
    """Of features that are like the pictures', and of full rank, as COCO's are."""
    import torch
    from fid import inception as fid
    from PIL import Image
    from torchvision.transforms.functional import to_tensor

    model = fid.InceptionV3([3]).eval()
    small = [Image.fromarray(picture).resize((299, 299)) for picture in pictures(16)]
    with torch.no_grad():
        rows = torch.cat([model(to_tensor(picture)[None])[0][:, :, 0, 0] for picture in small]).double().numpy()
    rows = rows[8:]
    random = np.random.default_rng(3)
    deviation = rows.std(0).mean() + 1e-3
    rows = np.concatenate([rows, rows.mean(0) + random.normal(size=(4096, rows.shape[1])) * deviation])
    np.savez(path, mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))


def reference(arguments, work, more):
    """Figures of accuracy_coco.py, and the line that it prints."""
    out = work / ("theirs" + "".join(more))
    out.mkdir()
    tools = arguments.reference / "text_to_image" / "tools"
    command = [sys.executable, "-c", LAUNCHER, work / "clip" / "open_clip_model.safetensors", tools]
    command += ["--mlperf-accuracy-file", work / "mlperf_log_accuracy.json", "--caption-path", work / "captions.tsv"]
    command += ["--statistics-path", work / "statistics.npz", "--output-file", out / "coco-results.json"]
    command += ["--compliance-images-path", out / "images", "--ids-path", work / "sample_ids.txt", *more]
    environment = dict(os.environ, TORCH_HOME=str(work / "torch"))
    told = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    line = next(line for line in told.splitlines() if line.startswith("Accuracy Results: "))
    return out, line


def ours(arguments, work, inception):
    out = work / "ours"
    command = [arguments.binary, "mlperf", "inference", "accuracy", "--log", work / "mlperf_log_accuracy.json"]
    command += ["--captions", work / "captions.tsv", "--statistics", work / "statistics.npz", "--clip", work / "clip"]
    command += ["--inception", inception, "--compliance-ids", work / "sample_ids.txt", "--out", out]
    told = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout
    return out, told.strip()


def compare(ours, theirs):
    """True if two results are the same in form, and figures differ by no more than 1e-4; prints how far they are apart."""
    (our_folder, our_line), (their_folder, their_line) = ours, theirs
    number = r"'-?[\d.]+(e[-+]\d+)?'"
    same = re.sub(number, "N", our_line) == re.sub(number, "N", their_line)
    same &= (our_folder / "accuracy.txt").read_text() == our_line + "\n"
    results = [(folder / "coco-results.json").read_text() for folder in (our_folder, their_folder)]
    number = number.replace("'", '"')
    same &= re.sub(number, "N", results[0]) == re.sub(number, "N", results[1])
    images = [folder / "images" for folder in (our_folder, their_folder)]
    names = [sorted(path.name for path in folder.iterdir()) for folder in images]
    same &= names[0] == names[1]
    for name in names[0]:
        same &= content(images[0] / name) == content(images[1] / name)
    ours, theirs = map(json.loads, results)
    for name in theirs:
        mine, other = float(ours[name]), float(theirs[name])
        far = abs(mine - other) / max(1.0, abs(other))
        same &= far <= 1e-4
        print(f"{name:10}  Calotype {mine:.8f}  reference {other:.8f}  {far:.1e}", flush=True)
    if not same:
        print(f"{our_folder} and {their_folder} differ")
    return same


def content(path):
    if path.suffix != ".png":
        return path.read_bytes()
    from PIL import Image

    with Image.open(path) as picture:
        return picture.mode, picture.size, picture.tobytes()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--reference", required=True, type=pathlib.Path)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--low-memory", action="store_true")
    arguments = parser.parse_args()
    if arguments.pictures < max(KEPT) + 1:
        parser.error(f"--pictures {arguments.pictures}: at least {max(KEPT) + 1}, for some of them are kept")
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or pathlib.Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        os.environ["TORCH_HOME"] = str(work / "torch")
        tools = (arguments.reference / "text_to_image" / "tools").absolute()
        inception = make_inception(tools, work / "torch")
        make_clip(work / "clip")
        write_log(work / "mlperf_log_accuracy.json", arguments.pictures)
        write_captions(work / "captions.tsv", arguments.pictures + 3)
        write_statistics(work / "statistics.npz", inception, tools)
        (work / "sample_ids.txt").write_text("\n".join(map(str, KEPT)))
        mine = ours(arguments, work, inception)
        ways = [[], ["--low_memory"]] if arguments.low_memory else [[]]
        results = [compare(mine, reference(arguments, work, way)) for way in ways]
    passed = results.count(True)
    print(f"test result: {'ok' if all(results) else 'FAILED'}. {passed} passed; {len(results) - passed} failed")
    sys.exit(0 if all(results) else 1)


main()
