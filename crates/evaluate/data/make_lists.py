"""Makes the lists for zero-shot classification of ImageNet that stand beside this script, from open_clip's.

    python -m venv venv && venv/bin/pip install open_clip_torch==3.3.0 && venv/bin/python make_lists.py
"""

from pathlib import Path

from open_clip import zero_shot_metadata as lists

FOLDER = Path(__file__).parent


def write(name, lines):
    assert all(line == line.strip() and line and "\n" not in line for line in lines)
    (FOLDER / name).write_text("".join(f"{line}\n" for line in lines))


write("imagenet_classes.txt", lists.IMAGENET_CLASSNAMES)
write("openai_templates.txt", [template("{}") for template in lists.OPENAI_IMAGENET_TEMPLATES])
write("simple_templates.txt", [template("{}") for template in lists.SIMPLE_IMAGENET_TEMPLATES])
