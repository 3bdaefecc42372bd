"""Makes inception.json, and the files of pictures/ with modes that most pictures do not have: features and figures by the
packages that publish them, all on one network of made-up weights.

Weights and the other pictures are a hash of their key and index (`formula`, `picture`), which the test computes too.

    python make_inception.py

with pytorch-fid 0.3.0, clean-fid 0.1.35, torch-fidelity 0.4.0, torchmetrics 1.9.0 (torch 2.15, Pillow 13, SciPy 1.17); nothing is
downloaded. What NVIDIA evaluates NeMo's models with is no package; `nemo` restates its steps.
"""

import functools
import json
import os
import pathlib
import tempfile
import warnings

import numpy as np
import torch
import torchvision
from PIL import Image

HERE = pathlib.Path(__file__).parent
FILES = HERE / "pictures"
HOME = tempfile.mkdtemp()
os.environ["TORCH_HOME"] = HOME
warnings.simplefilter("ignore")

import torch_fidelity  # noqa: E402
import torchmetrics.image  # noqa: E402
from cleanfid import fid as clean_fid  # noqa: E402
from cleanfid.resize import build_resizer  # noqa: E402
from pytorch_fid import fid_score  # noqa: E402
from pytorch_fid import inception as fid  # noqa: E402

# Every so many features are kept.
STEP = 32
# Sets of pictures: sides in turn.
SIZES = [(40, 40), (64, 48), (33, 90), (71, 71)]
SET = 10
KID = dict(subsets=7, subset_size=6)
SPLITS = 3


def hashes(key, count):
    """FNV-1a of the key, mixed with the index, as 32-bit numbers."""
    start = functools.reduce(lambda h, byte: (h ^ byte) * 0x01000193 % 2**32, key.encode(), 0x811C9DC5)
    x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B9) + np.uint32(start)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x


def formula(key, count):
    """Uniform in -1..1, multiples of 2^-23."""
    return (hashes(key, count) >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)


def parameter(key, shape):
    """Weights that keep the variance behind ReLUs; scales around one; shifts around zero."""
    values = formula(key, int(np.prod(shape, dtype=np.int64)))
    if len(shape) > 1:
        values = values * np.float32(np.sqrt(6.0 / np.prod(shape[1:])))
    elif key.endswith(("weight", "running_var")):
        values = np.float32(1.0) + values * np.float32(0.3)
    else:
        values = values * np.float32(0.2)
    return torch.from_numpy(values.reshape(shape))


def picture(key, width, height):
    """A ramp in each channel, and noise."""
    numbers = hashes(key, 9).astype(np.int64)
    base, across, down = numbers[0:3] % 160, numbers[3:6] % 96, numbers[6:9] % 96
    y, x = np.mgrid[0:height, 0:width]
    noise = (hashes(key + ".noise", height * width * 3) % np.uint32(24)).astype(np.int64).reshape(height, width, 3)
    levels = base + across * x[..., None] // width + down * y[..., None] // height + noise
    return Image.fromarray(np.minimum(levels, 255).astype(np.uint8))


def write_files():
    """Pictures of rare modes, all PNG, so that every decoder agrees on their pixels."""
    FILES.mkdir(exist_ok=True)
    colours = picture("modes", 45, 30)
    alpha = Image.fromarray((np.mgrid[0:30, 0:45][1] * 255 // 44).astype(np.uint8))
    grey = np.asarray(colours.convert("L")).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = colours.quantize(16)
    clear.info["transparency"] = 3
    rgba = colours.copy()
    rgba.putalpha(alpha)
    la = colours.convert("L")
    la.putalpha(alpha)
    small = picture("small", 9, 7)
    files = {
        "grey": colours.convert("L"),
        "grey_alpha": la,
        "bits": colours.convert("1"),
        "palette": colours.quantize(16),
        "palette_clear": clear,
        "rgba": rgba,
        "grey_16": Image.fromarray(grey * 257),
        "grey_16_dark": Image.fromarray(grey),
        "small": small,
    }
    for name, image in files.items():
        options = {"transparency": 3} if name == "palette_clear" else {}
        image.save(FILES / f"{name}.png", optimize=True, **options)
    colours.save(FILES / "turned.png", exif=exif, optimize=True)


def weights():
    """The weights in the official layout, where pytorch-fid and torch-fidelity look for theirs."""
    folder = pathlib.Path(HOME) / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    network = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
    state = {
        key: parameter(key, tuple(value.shape)) if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }
    path = folder / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(state, path)
    torch.save(
        {key: value for key, value in state.items() if "num_batches" not in key} | {
            key: value for key, value in state.items() if "num_batches" in key
        },
        folder / "weights-inception-2015-12-05-6726825d.pth",
    )
    return folder


class Packages:
    """Features and figures of folders by each package."""

    def __init__(self, folder):
        def without_weights(*_, **__):
            return torchvision.models.inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)

        original, fid._inception_v3 = fid._inception_v3, without_weights
        path = folder / "pt_inception-2015-12-05-6726825d.pth"
        fid.load_state_dict_from_url = lambda *_, **__: torch.load(path)
        self.wrapped = fid.InceptionV3([3]).eval()
        self.bare = fid.InceptionV3([3], resize_input=False, normalize_input=False).eval()
        fid._inception_v3 = original
        self.weights = str(folder / "weights-inception-2015-12-05-6726825d.pth")
        self.fidelity = torch_fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=self.weights
        )

    def run(self, network, x):
        with torch.no_grad():
            return network(x)

    def pytorch_fid(self, path):
        dataset = fid_score.ImagePathDataset([path], torchvision.transforms.ToTensor())
        return self.run(self.wrapped, dataset[0][None])[0].flatten(1)

    def clean(self, x):
        """The input in 0..255, as clean-fid's network takes it."""
        return self.run(self.bare, (x - 128) / 128)[0].flatten(1)

    def clean_fid(self, path):
        image = build_resizer("clean")(np.array(Image.open(path).convert("RGB")))
        return self.clean(torch.from_numpy(image.transpose(2, 0, 1))[None])

    def tensor(self, path):
        return torch_fidelity.datasets.ImagesPathDataset([path])[0][None]

    def torch_fidelity(self, path):
        return self.run(self.fidelity, self.tensor(path))[0]

    def torchmetrics(self, path):
        if not hasattr(self, "metrics_network"):
            from torchmetrics.image.fid import NoTrainInceptionV3

            self.metrics_network = NoTrainInceptionV3("inception", ["2048"], self.weights)
        return self.run(self.metrics_network, self.tensor(path))

    def nemo(self, path):
        image = Image.open(path).convert("RGB").resize((256, 256), resample=Image.BICUBIC)
        x = (2 * torchvision.transforms.ToTensor()(image) - 1).clamp(-1, 1)[None]
        x = torch.nn.functional.interpolate(x, size=(299, 299), mode="bicubic", align_corners=True)
        return self.run(self.bare, x)[0].flatten(1)


VARIANTS = {
    "pytorch-fid": Packages.pytorch_fid,
    "clean-fid": Packages.clean_fid,
    "torch-fidelity": Packages.torch_fidelity,
    "torchmetrics": Packages.torchmetrics,
    "tf": Packages.nemo,
}


def sets(root):
    """Two folders of pictures: made-up ones, and in the first one the files of all modes too."""
    folders = []
    for name, shift in [("first", 0), ("second", 1)]:
        folder = pathlib.Path(root) / name
        folder.mkdir()
        for number in range(SET):
            width, height = SIZES[(number + shift) % len(SIZES)]
            picture(f"{name}.{number}", width, height).save(folder / f"picture-{number:02}.png")
        folders.append(folder)
    for path in sorted(FILES.iterdir()):
        (folders[0] / path.name).write_bytes(path.read_bytes())
    return [str(folder) for folder in folders]


def figures(packages, first, second):
    """FID, KID and Inception score of the first folder against the second, as each package computes them."""
    found = {}
    both = [str(first), str(second)]
    extract = dict(device=torch.device("cpu"), num_workers=0, batch_size=1, verbose=False)
    # SciPy's square root of a singular product may fail; the package then adds to the diagonals.
    found["pytorch-fid"] = {
        "fid": float(
            fid_score.calculate_frechet_distance(
                *fid_score.compute_statistics_of_path(both[0], packages.wrapped, 1, 2048, "cpu", 0),
                *fid_score.compute_statistics_of_path(both[1], packages.wrapped, 1, 2048, "cpu", 0),
            )
        )
    }
    clean = dict(extract, mode="clean", custom_feat_extractor=packages.clean)
    found["clean-fid"] = {"fid": float(clean_fid.compute_fid(*both, **clean))}
    features = [clean_fid.get_folder_features(folder, packages.clean, mode="clean", num_workers=0, batch_size=1,
                                              device=torch.device("cpu"), verbose=False) for folder in both]
    np.random.seed(2020)
    found["clean-fid"]["kid"] = clean_fid.kernel_distance(
        features[0], features[1], num_subsets=KID["subsets"], max_subset_size=KID["subset_size"]
    )
    metrics = torch_fidelity.calculate_metrics(
        input1=both[0], input2=both[1], cuda=False, batch_size=1, isc=True, fid=True, kid=True, isc_splits=SPLITS,
        kid_subsets=KID["subsets"], kid_subset_size=KID["subset_size"], verbose=False, cache=False,
        feature_extractor_weights_path=packages.weights, samples_find_deep=False, save_cpu_ram=True,
    )
    found["torch-fidelity"] = {
        "fid": metrics["frechet_inception_distance"],
        "kid": metrics["kernel_inception_distance_mean"],
        "kid_deviation": metrics["kernel_inception_distance_std"],
        "inception_score": metrics["inception_score_mean"],
        "inception_score_deviation": metrics["inception_score_std"],
    }
    metric = torchmetrics.image.fid.FrechetInceptionDistance(feature_extractor_weights_path=packages.weights)
    metric.set_dtype(torch.float64)
    for folder, real in [(both[1], True), (both[0], False)]:
        for path in sorted(pathlib.Path(folder).iterdir()):
            metric.update(packages.tensor(str(path)), real=real)
    found["torchmetrics"] = {"fid": float(metric.compute())}
    activations = [
        torch.cat([packages.nemo(str(path)) for path in sorted(pathlib.Path(folder).iterdir())]).numpy()
        for folder in both
    ]
    moments = [(np.mean(rows, axis=0), np.cov(rows, rowvar=False)) for rows in activations]
    found["tf"] = {"fid": float(fid_score.calculate_frechet_distance(*moments[0], *moments[1]))}
    return found


def main():
    write_files()
    packages = Packages(weights())
    with tempfile.TemporaryDirectory() as root:
        first, second = sets(root)
        names = [path.stem for path in sorted(pathlib.Path(first).iterdir()) if path.stem != "picture-09"]
        kept = [name for name in names if not name.startswith("picture") or name <= "picture-03"]
        features = {
            variant: {
                name: [float(f"{value:.7g}") for value in extract(packages, f"{first}/{name}.png")[0, ::STEP].tolist()]
                for name in kept
            }
            for variant, extract in VARIANTS.items()
        }
        found = figures(packages, first, second)
    path = HERE / "inception.json"
    text = {"step": STEP, "set": SET, "sizes": SIZES, "kid": KID, "splits": SPLITS, "figures": found}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in text.items()]
    rows = ",\n".join(
        f"{json.dumps(variant)}: {{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()) + "}"
        for variant, rows in features.items()
    )
    path.write_text("{\n" + ",\n".join(lines) + ',\n"features": {\n' + rows + "\n}\n}\n")


if __name__ == "__main__":
    main()
