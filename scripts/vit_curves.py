"""Makes the folders that vit-curves.sh trains with from Debian's openclipart, and judges what came out.

    python scripts/vit_curves.py prepare ROOT OUT    # ROOT: unpacked packages openclipart-png and openclipart-svg
    python scripts/vit_curves.py judge OUT           # what the evaluations below OUT found; fails if it is not what it should be

`prepare` writes OUT/classes/{train,held_out}/CLASS/NAME.png (ImageNet's layout), OUT/captions/{train,held_out} (the same pictures with
metadata.jsonl) and OUT/classes.txt. A class is a folder of openclipart's second level with pictures enough. Pictures are shrunk and put on
white. The same picture under two names counts once, and its bytes decide whether it is held out, so that no picture is in both.
"""

import argparse
import hashlib
import json
import os
import re
import sys
from pathlib import Path

FEWEST, MOST = 24, 130  # pictures of a class
SIDE = 112  # longest side of a picture
LARGEST = 40_000_000  # pixels of one that is opened
HELD_OUT = 5  # one of so many


def name_of(folder):
    return folder.name.replace("_", " ")


def title_of(svg):
    """The picture's title, if it has one of its own."""
    try:
        head = svg.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"<dc:title[^>]*>([^<]+)</dc:title>", head)
    title = re.sub(r"\s+", " ", found.group(1)).strip() if found else ""
    shared = ("flat icon collection", "gramastar", "card", "untitled", "drawing", "openclipart")
    return "" if any(word in title.lower() for word in shared) else title.lower()


def small(path):
    from PIL import Image

    with Image.open(path) as image:
        if image.width * image.height > LARGEST or min(image.size) < 16:
            return None
        image = image.convert("RGBA")
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        return white.convert("RGB")


def prepare(root, out):
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    pictures = root / "usr/share/openclipart/png"
    drawings = root / "usr/share/openclipart/svg"
    seen, classes = set(), {}
    for folder in sorted(path for path in pictures.glob("*/*") if path.is_dir()):
        files = sorted(path for path in folder.rglob("*.png") if path.is_file() and not path.is_symlink())
        fresh = []
        for file in files:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            if digest not in seen:
                seen.add(digest)
                fresh.append((digest, file))
        if len(fresh) >= FEWEST:
            # In the order of digests, which no name decides.
            classes.setdefault(name_of(folder), []).extend(sorted(fresh)[:MOST])
    captions = {"train": [], "held_out": []}
    for name, files in sorted(classes.items()):
        for at, (digest, file) in enumerate(files):
            image = small(file)
            if image is None:
                continue
            part = "held_out" if at % HELD_OUT == 0 else "train"
            key = f"{name.replace(' ', '_')}_{digest[:12]}.png"
            target = out / "classes" / part / name / key
            target.parent.mkdir(parents=True, exist_ok=True)
            image.save(target)
            linked = out / "captions" / part / key
            linked.parent.mkdir(parents=True, exist_ok=True)
            os.link(target, linked)
            title = title_of(drawings / file.relative_to(pictures).with_suffix(".svg"))
            text = f"a drawing of {name}: {title}" if title else f"a drawing of {name}"
            captions[part].append({"file_name": key, "text": text})
    for part, rows in captions.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / "captions" / part / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in sorted(classes)), encoding="utf-8")
    print(f"{len(classes)} classes, {len(captions['train'])} pictures to train with, {len(captions['held_out'])} held out")
    if len(classes) < 20:
        sys.exit("fewer than 20 classes: are these the packages openclipart-png and openclipart-svg?")


def figure(out, evaluation, metric, variant=None):
    for found in json.loads((out / evaluation / "figures.json").read_text()):
        if found["metric"] == metric and variant in (None, found["variant"]):
            return found["value"]
    sys.exit(f"{out / evaluation}: has no {metric}")


def logged(run, ending):
    """Values of a number over a run, in order."""
    values = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        values += [value for name, value in json.loads(line).items() if name.endswith(ending)]
    return values


def judge(out):
    classes = len((out / "classes.txt").read_text().splitlines())
    chance = 1 / classes
    base, tuned = (figure(out, name, "top_1") for name in ("evaluated/vit", "evaluated/vit-finetuned"))
    print(f"chance                         {chance:.3f}  ({classes} classes)")
    print(f"ViT, 16 px                     top-1 {base:.3f}  top-5 {figure(out, 'evaluated/vit', 'top_5'):.3f}")
    print(f"fine-tuned, 32 px              top-1 {tuned:.3f}  top-5 {figure(out, 'evaluated/vit-finetuned', 'top_5'):.3f}")
    problems = []
    if base < 6 * chance:
        problems.append("the ViT is not well above chance")
    if tuned <= base:
        problems.append("the fine-tuned ViT is no better")
    for name, ending in (
        ("zero-shot top-1", "zero_shot_top_1"),
        ("picture to caption, recall@5", "retrieval_image_to_text_recall_at_5"),
        ("caption to picture, recall@5", "retrieval_text_to_image_recall_at_5"),
    ):
        values = logged(out / "runs/clip", ending)
        if len(values) < 3:
            sys.exit(f"{out / 'runs/clip'}: has logged {ending} {len(values)} times; 3 are needed to see whether it rises")
        print(f"CLIP, {name:30} " + " ".join(f"{value:.3f}" for value in values))
        if values[-1] <= values[0]:
            problems.append(f"CLIP's {name} does not rise")
    print("pages: " + " ".join(str(path) for path in sorted((out / "evaluated").glob("*/report.html"))))
    if problems:
        sys.exit("; ".join(problems))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of = commands.add_parser("prepare")
    of.add_argument("root", type=Path)
    of.add_argument("out", type=Path)
    of = commands.add_parser("judge")
    of.add_argument("out", type=Path)
    options = parser.parse_args()
    if options.command == "prepare":
        prepare(options.root, options.out)
    else:
        judge(options.out)


if __name__ == "__main__":
    main()
