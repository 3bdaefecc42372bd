"""Judges small vision models with Calotype and with PyTorch; see vision-peers.sh."""

import argparse
import csv
import io
import json
import pathlib
import random
import subprocess
import sys
import tarfile
import tempfile

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from sklearn.linear_model import LogisticRegression
from transformers import (
    AutoImageProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    ViTConfig,
    ViTForImageClassification,
)

CLASSES, OF_CLASS, SIDE = 10, 20, 64
TEMPLATES = [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]


class Report:
    def __init__(self):
        self.bad = 0

    def check(self, name, good, detail):
        print(f"{'same' if good else 'DIFFERS':8} {name:44} {detail}")
        self.bad += not good


def calotype(args, *arguments):
    command = [args.calotype, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def pictures(args, folder):
    """200 pictures below 10 folders, whose names begin with the number of the class; and captions for some of them."""
    shards = folder / "emoji"
    calotype(args, "data", "emoji", shards, "--resolution", "160", "--drawings", "16")
    found = {}
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as tar:
            parts = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
        for name, data in parts.items():
            if name.endswith(".png"):
                facts = json.loads(parts[name.removesuffix("png") + "json"])
                caption = parts[name.removesuffix("png") + "txt"].decode()
                found.setdefault(facts["name"], []).append((data, caption))
    numbers = random.Random(3)
    names = sorted(found)[:CLASSES]
    for number, name in enumerate(names):
        for copy in range(OF_CLASS):
            data, caption = found[name][copy % len(found[name])]
            image = Image.open(io.BytesIO(data)).convert("RGB").rotate(numbers.uniform(-20, 20), Image.Resampling.BICUBIC)
            left, top = numbers.randrange(20), numbers.randrange(20)
            image = image.crop((left, top, 160 - numbers.randrange(20), 160 - numbers.randrange(20)))
            image = image.resize((numbers.randrange(48, 200), numbers.randrange(48, 200)), Image.Resampling.LANCZOS)
            path = folder / ("test" if copy % 2 else "train") / f"{number:02}" / f"{copy:02}.png"
            for place in (path, folder / "all" / f"{number:02}" / f"{copy:02}.png"):
                place.parent.mkdir(parents=True, exist_ok=True)
                image.save(place)
            if copy < 6:
                place = folder / "captioned" / f"{number:02}-{copy:02}.png"
                place.parent.mkdir(exist_ok=True)
                image.save(place)
                texts = [caption, f"the {name}, seen by {copy}", "a picture"][: 1 + copy % 3]
                place.with_suffix(".txt").write_text("\n".join(texts) + "\n")
    return names


def tokenizer_files(folder):
    """CLIP's vocabulary as transformers reads it, from open_clip's copy."""
    tokenizer = SimpleTokenizer()
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get)
    # open_clip calls the two markers otherwise.
    ours = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {ours.get(token, token): number for token, number in tokenizer.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    end = "<|endoftext|>"
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "bos_token": "<|startoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {k: end for k in ("eos_token", "pad_token", "unk_token")}))


def models(folder):
    """A ViT and a CLIP model of random weights that differ enough for pictures to be told apart."""
    torch.manual_seed(5)
    small = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, initializer_range=0.15)
    vit = ViTForImageClassification(ViTConfig(image_size=SIDE, patch_size=8, num_labels=CLASSES, **small)).eval()
    with torch.no_grad():
        vit.classifier.weight[6] = vit.classifier.weight[2]
        vit.classifier.bias[6] = vit.classifier.bias[2]
    vit.save_pretrained(folder / "vit")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE}, "resample": 2}
    processor |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))

    tower = small | dict(hidden_act="quick_gelu", initializer_factor=6.0)
    config = CLIPConfig(
        text_config=dict(vocab_size=49408, max_position_embeddings=77, **tower),
        vision_config=dict(image_size=SIDE, patch_size=8, **tower),
        projection_dim=24,
    )
    clip = CLIPModel(config).eval()
    clip.save_pretrained(folder / "clip")
    processor = {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIDE}, "resample": 3,
        "crop_size": {"height": SIDE, "width": SIDE}, "image_mean": list(open_clip.OPENAI_DATASET_MEAN),
        "image_std": list(open_clip.OPENAI_DATASET_STD),
    }
    (folder / "clip" / "preprocessor_config.json").write_text(json.dumps(processor))
    tokenizer_files(folder / "clip")
    return vit, clip


def pixels(folder, files):
    """As transformers' processors prepare pictures, with torchvision."""
    processor = AutoImageProcessor.from_pretrained(folder)
    rows = [processor(Image.open(file).convert("RGB"), return_tensors="pt").pixel_values for file in files]
    return torch.cat(rows)


class Clip:
    """Unit features by transformers."""

    def __init__(self, folder, model):
        self.folder, self.model = folder, model
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def raw(self, files):
        return self.model.visual_projection(self.model.vision_model(pixels(self.folder, files)).pooler_output)

    def images(self, files):
        return F.normalize(self.raw(files), dim=-1)

    @torch.no_grad()
    def texts(self, texts):
        ids = self.tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
        return F.normalize(self.model.text_projection(self.model.text_model(ids).pooler_output), dim=-1)


def accuracy(logits, labels):
    """The usual function of ImageNet's examples, CLIP's and open_clip's."""
    best = logits.topk(5, 1, True, True)[1]
    right = best.eq(labels.view(-1, 1))
    return {f"top_{k}": right[:, :k].any(1).double().mean().item() for k in (1, 5)}, best


def figures(folder):
    found = json.loads((folder / "figures.json").read_text())
    found = found["figures"] if isinstance(found, dict) else found
    return {(figure["variant"], figure["metric"]): figure["value"] for figure in found}


def compare_classes(args, report, name, folder, recipe, logits, labels, files):
    """Accuracies, and the best class and rank of each picture."""
    (folder / f"{name}.toml").write_text(recipe)
    judged = folder / f"{name}-judged"
    calotype(args, "evaluate", folder / f"{name}.toml", "--out", judged)
    theirs, best = accuracy(logits, labels)
    ours = figures(judged)
    variant = {"vit": "classification", "zero_shot": "zero_shot", "probe": "linear_probe"}[name]
    for metric, value in theirs.items():
        found = ours[(variant, metric)]
        report.check(f"{name}: {metric}", abs(found - value) < 1e-9, f"{found:.4f} and {value:.4f}")
    with open(judged / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    first = sum(int(row["predicted"]) == int(classes[0]) for row, classes in zip(rows, best))
    report.check(f"{name}: best class of each picture", first == len(files) == len(rows), f"{first} of {len(files)}")
    tied = sum(row["tied"] == "true" for row in rows)
    expected = sum(int((row == row[label]).sum() > 1) for row, label in zip(logits, labels))
    report.check(f"{name}: ties", tied == expected, f"{tied} and {expected}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--calotype", required=True)
    parser.add_argument("--keep")
    args = parser.parse_args()
    torch.set_num_threads(max(1, torch.get_num_threads()))
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(args.keep or temporary)
        folder.mkdir(exist_ok=True)
        report = Report()
        judge(args, folder, report)
        print("all the same" if not report.bad else f"{report.bad} differ")
        sys.exit(bool(report.bad))


def judge(args, folder, report):
    names = pictures(args, folder)
    vit, model = models(folder)
    clip = Clip(folder / "clip", model)
    files = sorted((folder / "all").glob("*/*.png"))
    labels = torch.tensor([int(file.parent.name) for file in files])
    common = "precision = 'f32'\nbatch_size = 24\n"

    with torch.no_grad():
        logits = vit(pixels(folder / "vit", files)).logits
    recipe = f"kind = 'classification'\nmodel = '{folder}/vit'\n{common}[data]\npath = '{folder}/all'\n"
    compare_classes(args, report, "vit", folder, recipe, logits, labels, files)
    probabilities = logits.softmax(1)
    told = [json.loads(line) for line in calotype(args, "classify", folder / "vit", folder / "all", "--json", "--precision", "f32").splitlines()]
    worst = max(
        abs(guess["probability"] - probabilities[number, guess["class"]].item())
        for number, one in enumerate(told)
        for guess in one["classes"]
    )
    report.check("classify: probabilities", len(told) == len(files) and worst < 1e-4, f"largest difference {worst:.1e}")

    # Two classes of one name tie in every picture.
    names = names[:7] + [names[1]] + names[8:]
    directions = []
    for name in names:
        mean = clip.texts([template.format(name) for template in TEMPLATES]).mean(0)
        directions.append(mean / mean.norm())
    logits = 100.0 * clip.images(files) @ torch.stack(directions).T
    logits[:, 7] = logits[:, 1]
    recipe = f"kind = 'zero_shot'\nmodel = '{folder}/clip'\nclasses = {json.dumps(names)}\ntemplates = ['openai']\n"
    compare_classes(args, report, "zero_shot", folder, f"{recipe}{common}[data]\npath = '{folder}/all'\n", logits, labels, files)

    halves = {part: sorted((folder / part).glob("*/*.png")) for part in ("train", "test")}
    features = {part: clip.raw(own).double().numpy() for part, own in halves.items()}
    classes = {part: np.array([int(file.parent.name) for file in own]) for part, own in halves.items()}
    fitted = LogisticRegression(C=0.316, max_iter=10_000, tol=1e-10).fit(features["train"], classes["train"])
    logits = torch.from_numpy(fitted.decision_function(features["test"]))
    recipe = f"kind = 'linear_probe'\nmodel = '{folder}/clip'\n{common}[train]\npath = '{folder}/train'\n[data]\npath = '{folder}/test'\n"
    compare_classes(args, report, "probe", folder, recipe, logits, torch.from_numpy(classes["test"]), halves["test"])

    retrieval(args, folder, report, clip, common)
    similarity(args, folder, report, clip, files)
    clip_scores(args, folder, report, clip, sorted((folder / "all").rglob("*.png"))[::2])


def retrieval(args, folder, report, clip, common):
    files = sorted((folder / "captioned").glob("*.png"))
    captions = [(number, line) for number, file in enumerate(files) for line in file.with_suffix(".txt").read_text().splitlines()]
    of_picture = torch.tensor([number for number, _ in captions])
    unique = sorted({line for _, line in captions})
    vectors = dict(zip(unique, clip.texts(unique)))
    left, right = clip.images(files).double(), torch.stack([vectors[line] for _, line in captions]).double()
    cosines = (left[:, None, :] * right[None, :, :]).sum(-1).float()
    recipe = f"kind = 'retrieval'\nmodel = '{folder}/clip'\nks = [1, 5, 10]\n{common}[data]\npath = '{folder}/captioned'\n"
    (folder / "retrieval.toml").write_text(recipe)
    calotype(args, "evaluate", folder / "retrieval.toml", "--out", folder / "retrieval")
    ours = figures(folder / "retrieval")
    for k in (1, 5, 10):
        hits = (of_picture[cosines.topk(k, 1)[1]] == torch.arange(len(files))[:, None]).any(1)
        back = (cosines.T.topk(k, 1)[1] == of_picture[:, None]).any(1)
        for variant, value in [("image_to_text", hits), ("text_to_image", back)]:
            found, value = ours[(variant, f"recall_at_{k}")], value.double().mean().item()
            report.check(f"retrieval: {variant} at {k}", abs(found - value) < 1e-9, f"{found:.4f} and {value:.4f}")


def similarity(args, folder, report, clip, files):
    texts = ["a red heart", "a dog on a blue background", "x"]
    flags = [flag for text in texts for flag in ("--text", text)]
    flags += [flag for file in files[:3] for flag in ("--image", file)]
    told = calotype(args, "similarity", folder / "clip", *flags, "--json", "--precision", "f32").splitlines()
    cosines = clip.images(files[:3]) @ clip.texts(texts).T
    probabilities = (clip.model.logit_scale.exp() * cosines).softmax(1)
    for name, expected in [("cosine", cosines), ("probability", probabilities)]:
        found = torch.tensor([json.loads(line)[name] for line in told]).view(3, 3)
        worst = (found - expected).abs().max().item()
        report.check(f"similarity: {name}", worst < 1e-4, f"largest difference {worst:.1e}")


@torch.no_grad()
def prepared_by_open_clip(clip, files, captions):
    """Unit features of pictures and captions that open_clip prepares."""
    colours = dict(mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD)
    prepare = open_clip.image_transform(SIDE, is_train=False, **colours)
    pictures = torch.stack([prepare(Image.open(file)) for file in files])
    ids = open_clip.tokenize(captions).long()
    images = clip.model.visual_projection(clip.model.vision_model(pictures).pooler_output)
    return F.normalize(images, dim=-1), F.normalize(clip.model.text_projection(clip.model.text_model(ids).pooler_output), dim=-1)


def clip_scores(args, folder, report, clip, files):
    """The CLIP score of 100 pictures with captions, some of them longer than CLIP's context, and its cosines."""
    captions = [f"picture {number} of " + "many things " * (number % 50) for number in range(len(files))]
    scored = folder / "scored"
    scored.mkdir()
    for number, file in enumerate(files):
        (scored / f"{number:03}.png").write_bytes(file.read_bytes())
    (folder / "captions.txt").write_text("\n".join(captions) + "\n")
    peers = {
        "transformers": lambda: (clip.images(files), clip.texts(captions)),
        "open_clip": lambda: prepared_by_open_clip(clip, files, captions),
    }
    for name, features in peers.items():
        keep = folder / f"kept-{name}"
        flags = ["--metrics", "clip-score", "--clip", folder / "clip", "--clip-preparation", name, "--captions", folder / "captions.txt"]
        told = calotype(args, "evaluate", "pictures", scored, *flags, "--keep", keep, "--json")
        rows = [np.fromfile(next(keep.glob(f"*/clip.{name}.{of}.f32")), "<f4").reshape(len(files), -1) for of in ("features", "captions")]
        images, texts = (F.normalize(torch.from_numpy(of), dim=-1) for of in rows)
        found, expected = (images * texts).sum(1), torch.mul(*features()).sum(1)
        worst = (found - expected).abs().max().item()
        report.check(f"CLIP score by {name}: {len(files)} cosines", worst < 1e-4, f"largest difference {worst:.1e}")
        score = json.loads(told)["value"]
        report.check(f"CLIP score by {name}", abs(score - expected.mean().item()) < 1e-4, f"{score:.6f} and {expected.mean():.6f}")


if __name__ == "__main__":
    main()
