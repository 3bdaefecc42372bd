#!/usr/bin/env bash
# Two names stand twice in open_clip 3.3.0's list of ImageNet's classes: missile (657 and 744), sunglasses (836 and 837).
#
# A class of zero-shot classification is its name in all templates, so that both classes of a name have the same direction, and equal logits
# in every picture. If torch.topk puts one of the two first, pictures of that class can be right and those of the other cannot: a rule that counts
# ties against the label gives a top-1 of up to 0.2 % less (100 of 50,000 pictures), one that counts them for it up to 0.2 % more.
#
#   findings/open_clip_twin_names.sh
#
# installs the pinned package, without PyTorch, in a temporary folder, and fails if the list is another one.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --no-deps open_clip_torch==3.3.0
"$folder/venv/bin/python" - <<'PYTHON'
import ast
import collections
import importlib.util
import pathlib

package = pathlib.Path(importlib.util.find_spec("open_clip").submodule_search_locations[0])
tree = ast.parse((package / "zero_shot_metadata.py").read_text())
lists = {target.id: node.value for node in tree.body if isinstance(node, ast.Assign) for target in node.targets}
names = ast.literal_eval(lists["IMAGENET_CLASSNAMES"])
times = collections.Counter(names)
twins = {name: [number for number, other in enumerate(names) if other == name] for name in times if times[name] > 1}
print(twins)
assert len(names) == 1000
assert twins == {"missile": [657, 744], "sunglasses": [836, 837]}
PYTHON
