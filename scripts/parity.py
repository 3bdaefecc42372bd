"""Differences between Calotype's models and their originals, on checkpoints of the real sizes; see parity.sh.

The last rows go the other way: diffusers and transformers load what `calotype quickstart` wrote, and no key may be missing or
unexpected.

Every case makes a randomly initialised original, saves it in the layouts that it is published in, and lets
`calotype probe` compute the same inputs from each of them. Bounds: relative error in f32 at most 1e-4 (largest difference
over largest value), cosine in bf16 at least 0.999, gradients of every parameter and input within 1e-3 in f32.
"""
import argparse
import contextlib
import gc
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

F32, BF16, GRAD = 1e-4, 0.999, 1e-3
# Gradients this small beside the greatest one are rounding of zeros: those of the keys' biases, which a softmax ignores.
NOISE = 1e-4


def randomise(module, seed):
    """Weights whose outputs have a sensible size, none of them zero; norms near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() == 0:
                continue
            if parameter.dim() == 1:
                parameter.normal_(0, 0.05, generator=generator)
                if name.endswith("weight"):
                    parameter.add_(1)
            else:
                fan = parameter.numel() / parameter.shape[0] if "embedding" not in name else 2500
                parameter.normal_(0, fan**-0.5, generator=generator)
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("running_mean"):
                buffer.normal_(0, 0.1, generator=generator)
    return module.eval()


@contextlib.contextmanager
def random_from_here(seed):
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    yield
    torch.set_rng_state(state)


class Case:
    """One original: `make` builds it, `layouts` saves it, `run` computes the outputs that the probe is asked for."""

    component = ""
    gradients = True
    # Whether the original gets random weights; those that Calotype trained stay.
    random = True

    def make(self):
        raise NotImplementedError

    def layouts(self, model, folder):
        """Saves the model; yields the layout's name, the path to probe, and a map from canonical keys to the file's keys."""
        raise NotImplementedError

    def inputs(self):
        raise NotImplementedError

    def run(self, model, inputs):
        """Outputs by the names that the probe uses; the first one is what `grad_output` belongs to."""
        raise NotImplementedError


def sd_unet(**changes):
    from diffusers import UNet2DConditionModel

    config = dict(
        sample_size=64, in_channels=4, out_channels=4, layers_per_block=2, norm_num_groups=32,
        block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8,
    )
    return UNet2DConditionModel(**config | changes)


SDXL_UNET = dict(
    sample_size=128, cross_attention_dim=2048, attention_head_dim=(5, 10, 20), use_linear_projection=True,
    block_out_channels=(320, 640, 1280), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time",
    addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
)


class Unet(Case):
    component = "unet"

    def __init__(self, size=32, context=768, single_file=True, **config):
        self.size, self.context, self.config, self.single_file = size, context, config, single_file

    def make(self):
        return sd_unet(**{"cross_attention_dim": self.context} | self.config)

    def layouts(self, model, folder):
        yield from diffusers_layouts(model, folder, self.single_file)

    def inputs(self):
        channels = self.config.get("in_channels", 4)
        inputs = {
            "sample": torch.randn(2, channels, self.size, self.size),
            "timestep": torch.tensor([7.0, 801.0]),
            "encoder_hidden_states": torch.randn(2, 77, self.context),
        }
        if "addition_embed_type" in self.config:
            inputs["text_embeds"] = torch.randn(2, 1280)
            inputs["time_ids"] = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024], [768, 512, 16, 32, 1024, 1024]])
        return inputs

    def run(self, model, inputs):
        added = {key: inputs[key] for key in ("text_embeds", "time_ids") if key in inputs}
        return {
            "sample": model(
                inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"], added_cond_kwargs=added or None
            ).sample
        }


class VaeDecoder(Case):
    component = "vae-decoder"

    def __init__(self, **changes):
        self.changes = changes

    def make(self):
        from diffusers import AutoencoderKL

        return AutoencoderKL(**dict(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, norm_num_groups=32,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ) | self.changes)

    def layouts(self, model, folder):
        yield from diffusers_layouts(model, folder, True)

    def inputs(self):
        return {"sample": torch.randn(1, 4, 16, 16)}

    def run(self, model, inputs):
        return {"sample": model.decode(inputs["sample"]).sample}


class VaeEncoder(VaeDecoder):
    component = "vae-encoder"

    def inputs(self):
        return {"sample": torch.randn(1, 3, 96, 128).clamp(-1, 1)}

    def run(self, model, inputs):
        return {"moments": model.encode(inputs["sample"]).latent_dist.parameters}


def diffusers_layouts(model, folder, single_file):
    """The folder in one and in several shards, safetensors and .bin; then what `convert` makes of it as a single file."""
    keys = {name: name for name, _ in model.named_parameters()}
    model.save_pretrained(folder / "folder", max_shard_size="1GB")
    yield "diffusers", folder / "folder", keys
    if model.num_parameters() < 5e8:
        model.save_pretrained(folder / "bin", safe_serialization=False)
        yield "diffusers .bin", folder / "bin", keys
    if single_file:
        yield "single file", folder / "single.safetensors", None


class Text(Case):
    component = "text-encoder"

    def __init__(self, projection=False, **config):
        self.config, self.projection = config, projection

    def make(self):
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        kind = CLIPTextModelWithProjection if self.projection else CLIPTextModel
        return kind(CLIPTextConfig(**self.config))

    def layouts(self, model, folder):
        model.save_pretrained(folder / "folder")
        keys = published_keys(model, folder / "folder" / "model.safetensors")
        yield "transformers", folder / "folder", keys
        model.save_pretrained(folder / "sharded", max_shard_size="200MB")
        yield "transformers, sharded", folder / "sharded", keys

    def inputs(self):
        ids = torch.randint(1000, 40000, (2, 77))
        ids[:, 0] = 49406
        ids[0, 12:] = 49407
        ids[1, 76] = 49407
        return {"input_ids": ids}

    def run(self, model, inputs):
        out = model(inputs["input_ids"], output_hidden_states=True)
        outputs = {"last_hidden_state": out.last_hidden_state, "hidden_states.-2": out.hidden_states[-2]}
        if self.projection:
            outputs["text_embeds"] = out.text_embeds
        else:
            outputs["pooler_output"] = out.pooler_output
        return outputs


class OpenClip(Case):
    """A whole open_clip model, of which one tower is probed."""

    gradients = False

    def __init__(self, component, name, **changes):
        self.component, self.name, self.changes = component, name, changes

    def make(self):
        import open_clip

        config = json.loads(json.dumps(open_clip.get_model_config(self.name)))
        for path, value in self.changes.items():
            tower, key = path.split("__")
            config[f"{tower}_cfg"][key] = value
        config.pop("custom_text", None)
        return open_clip.CLIP(**config)

    def layouts(self, model, folder):
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
        yield "open_clip .bin", folder / "open_clip_pytorch_model.bin", None
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
        yield "open_clip .safetensors", folder / "open_clip_model.safetensors", None

    def inputs(self):
        if self.component == "image-encoder":
            return {"pixel_values": torch.randn(2, 3, 224, 224)}
        return Text().inputs()

    def run(self, model, inputs):
        if self.component == "image-encoder":
            return {"image_embeds": model.encode_image(inputs["pixel_values"])}
        return {"text_embeds": model.encode_text(inputs["input_ids"])}


class Vision(Case):
    component = "image-encoder"

    def __init__(self, **config):
        self.config = config

    def make(self):
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        return CLIPVisionModelWithProjection(CLIPVisionConfig(**self.config))

    def layouts(self, model, folder):
        model.save_pretrained(folder / "folder")
        yield "transformers", folder / "folder", published_keys(model, folder / "folder" / "model.safetensors")

    def inputs(self):
        return {"pixel_values": torch.randn(2, 3, 224, 224)}

    def run(self, model, inputs):
        out = model(inputs["pixel_values"])
        return {"image_embeds": out.image_embeds, "last_hidden_state": out.last_hidden_state}


class Classifier(Case):
    component = "classifier"

    def make(self):
        from transformers import ViTConfig, ViTForImageClassification

        return ViTForImageClassification(ViTConfig(num_labels=1000))

    layouts = Vision.layouts
    inputs = Vision.inputs

    def run(self, model, inputs):
        return {"logits": model(inputs["pixel_values"]).logits}


class Dinov2(Case):
    """At 224 pixels, for which the positions of 518 are brought to another grid."""

    component = "dinov2"
    gradients = False

    def __init__(self, registers=False, **config):
        self.registers, self.config = registers, config

    def make(self):
        import transformers

        kind = "Dinov2WithRegisters" if self.registers else "Dinov2"
        config = getattr(transformers, kind + "Config")(image_size=518, patch_size=14, **self.config)
        return getattr(transformers, kind + "Model")(config)

    def layouts(self, model, folder):
        model.save_pretrained(folder / "folder")
        yield "transformers", folder / "folder", None

    inputs = Vision.inputs

    def run(self, model, inputs):
        out = model(inputs["pixel_values"])
        return {"pooler_output": out.pooler_output, "last_hidden_state": out.last_hidden_state}


class Inception(Case):
    component = "inception"
    gradients = False

    def make(self):
        import pytorch_fid.inception as fid

        # The constructor fetches its weights; random ones stand in for them.
        state = {}

        def fetched(*_, **__):
            return state

        fid.load_state_dict_from_url = fetched
        original = torch.nn.Module.load_state_dict
        torch.nn.Module.load_state_dict = lambda self, s, *a, **k: None if s is state else original(self, s, *a, **k)
        try:
            model = fid.fid_inception_v3()
        finally:
            torch.nn.Module.load_state_dict = original
        return model

    def layouts(self, model, folder):
        torch.save(model.state_dict(), folder / "zip.pth")
        yield "pytorch-fid, zip", folder / "zip.pth", None
        torch.save(model.state_dict(), folder / "legacy.pth", _use_new_zipfile_serialization=False)
        yield "pytorch-fid, legacy", folder / "legacy.pth", None

    def inputs(self):
        return {"pixel_values": torch.rand(2, 3, 299, 299)}

    def run(self, model, inputs):
        import pytorch_fid.inception as fid

        original = fid.fid_inception_v3
        fid.fid_inception_v3 = lambda: model
        try:
            wrapped = fid.InceptionV3([3]).eval()
        finally:
            fid.fid_inception_v3 = original
        return {"features": wrapped(inputs["pixel_values"])[0].flatten(1)}


class Quickstart(Case):
    """A model that the quickstart trained, loaded by the library whose layout it has."""

    random = False
    # Where the smoke preset's folder is; made at the first use.
    folder = None
    calotype = None

    def __init__(self, component, library, kind, place, shapes):
        self.component, self.library, self.kind, self.place, self.shapes = component, library, kind, place, shapes

    def path(self):
        if Quickstart.folder is None:
            Quickstart.folder = Path(tempfile.mkdtemp(prefix="parity-quickstart-"))
            command = [self.calotype, "quickstart", "--preset", "smoke", "--out", Quickstart.folder]
            subprocess.run([str(part) for part in command], check=True, capture_output=True)
        return Quickstart.folder / self.place

    def make(self):
        kind = getattr(__import__(self.library), self.kind)
        model, info = kind.from_pretrained(self.path(), output_loading_info=True)
        wrong = {what: keys for what, keys in info.items() if keys}
        if wrong:
            raise RuntimeError(f"{self.kind} does not load {self.place} as it is: {wrong}")
        return model.eval()

    def layouts(self, model, folder):
        file = next(self.path().glob("*.safetensors"))
        yield f"{self.library}, as trained", self.path(), published_keys(model, file)

    def inputs(self):
        return {name: make() for name, make in self.shapes.items()}

    def run(self, model, inputs):
        match self.component:
            case "unet":
                return {"sample": model(inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"]).sample}
            case "vae-decoder":
                return {"sample": model.decode(inputs["sample"]).sample}
            case "vae-encoder":
                return {"moments": model.encode(inputs["sample"]).latent_dist.parameters}
            case "text-encoder":
                out = model.text_model(inputs["input_ids"])
                return {"last_hidden_state": out.last_hidden_state, "text_embeds": model.text_projection(out.pooler_output)}
            case "image-encoder":
                out = model.vision_model(inputs["pixel_values"])
                return {
                    "image_embeds": model.visual_projection(out.pooler_output), "last_hidden_state": out.last_hidden_state
                }


def short_prompts():
    ids = torch.randint(1000, 40000, (2, 24))
    ids[:, 0] = 49406
    ids[0, 12], ids[0, 13:] = 49407, 0
    ids[1, 23] = 49407
    return ids


CLIP_L = dict(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, hidden_act="quick_gelu",
    projection_dim=768,
)
CLIP_H = dict(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu",
    projection_dim=1024,
)
SD2 = dict(context=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
CASES = {
    "SD 1.5 UNet": Unet(),
    "SD 2.1 UNet": Unet(**SD2),
    "InstructPix2Pix UNet": Unet(in_channels=8),
    "SDXL UNet, depths 1 2 2": Unet(context=2048, transformer_layers_per_block=(1, 2, 2), single_file=False, **{
        key: value for key, value in SDXL_UNET.items() if key != "cross_attention_dim"
    }),
    "SD VAE encoder": VaeEncoder(),
    "SD VAE decoder": VaeDecoder(),
    "SDXL VAE encoder": VaeEncoder(scaling_factor=0.13025, sample_size=1024),
    "SDXL VAE decoder": VaeDecoder(scaling_factor=0.13025, sample_size=1024),
    "CLIP-L text": Text(**CLIP_L),
    "OpenCLIP-H text, of SD 2": Text(**CLIP_H),
    "bigG text, 4 layers": Text(
        projection=True, hidden_size=1280, intermediate_size=5120, num_hidden_layers=4, num_attention_heads=20,
        hidden_act="gelu", projection_dim=1280,
    ),
    "OpenCLIP-H text": OpenClip("text-encoder", "ViT-H-14", vision__layers=1),
    "OpenCLIP-H vision": OpenClip("image-encoder", "ViT-H-14", text__layers=1),
    "CLIP-L vision": Vision(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14,
        hidden_act="quick_gelu", projection_dim=768,
    ),
    "ViT-B/16": Classifier(),
    "DINOv2-B": Dinov2(),
    "DINOv2-B with registers": Dinov2(registers=True),
    "DINOv2-g, 2 layers": Dinov2(
        hidden_size=1536, num_attention_heads=24, num_hidden_layers=2, use_swiglu_ffn=True,
    ),
    "Inception v3": Inception(),
    "quickstart UNet": Quickstart("unet", "diffusers", "UNet2DConditionModel", "unet", {
        "sample": lambda: torch.randn(2, 4, 8, 8), "timestep": lambda: torch.tensor([7.0, 801.0]),
        "encoder_hidden_states": lambda: torch.randn(2, 24, 128),
    }),
    "quickstart VAE encoder": Quickstart(
        "vae-encoder", "diffusers", "AutoencoderKL", "vae", {"sample": lambda: torch.randn(2, 3, 32, 32).clamp(-1, 1)}
    ),
    "quickstart VAE decoder": Quickstart(
        "vae-decoder", "diffusers", "AutoencoderKL", "vae", {"sample": lambda: torch.randn(2, 4, 8, 8)}
    ),
    "quickstart CLIP, text": Quickstart("text-encoder", "transformers", "CLIPModel", "clip/model", {"input_ids": short_prompts}),
    "quickstart CLIP, vision": Quickstart(
        "image-encoder", "transformers", "CLIPModel", "clip/model", {"pixel_values": lambda: torch.randn(2, 3, 32, 32)}
    ),
}


def published_keys(model, file):
    """The keys that a file has for a model's parameters, which newer versions of a library may call otherwise in memory."""
    def content(tensor):
        return tuple(tensor.shape), tensor.float().sum().item(), tuple(tensor.flatten()[:8].tolist())

    stored = {content(tensor): key for key, tensor in load_file(file).items()}
    return {name: stored[content(parameter.detach())] for name, parameter in model.named_parameters()}


def relative(ours, theirs):
    return ((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp_min(1e-30)).item()


def cosine(ours, theirs):
    a, b = ours.double().flatten(), theirs.double().flatten()
    return (a @ b / (a.norm() * b.norm())).item()


def probe(args, component, path, given, precision, grad):
    out = given.with_name("out.safetensors")
    command = [args.calotype, "probe", component, "--model", path, "--in", given, "--out", out, "--precision", precision]
    start = time.time()
    done = subprocess.run([str(part) for part in command + (["--grad"] if grad else [])], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return load_file(out), time.time() - start


def gradients(case, model, inputs, outputs, grad_output):
    """Gradients by the names of parameters and of inputs."""
    first = next(iter(outputs.values()))
    wanted = {name: value for name, value in inputs.items() if value.requires_grad}
    wanted |= {name: value for name, value in model.named_parameters() if value.requires_grad}
    found = torch.autograd.grad(first, list(wanted.values()), grad_output, allow_unused=True)
    return {name: value for name, value in zip(wanted, found) if value is not None}


def worst_gradient(ours, theirs, names):
    """The largest difference of a gradient relative to its own largest value, and whose it is."""
    greatest = max(value.abs().max().item() for value in theirs.values())
    worst, where = 0.0, ""
    for name, expected in theirs.items():
        key = f"grad.{names.get(name, name)}"
        if key not in ours:
            return math.inf, f"{key} is missing"
        size = max(expected.abs().max().item(), NOISE * greatest)
        error = (ours[key].reshape(expected.shape).double() - expected.double()).abs().max().item() / size
        if error > worst or math.isnan(error):
            worst, where = error, name
    return worst, where


def run_case(args, name, case, folder):
    with random_from_here(sum(map(ord, name))):
        model = randomise(case.make(), 5) if case.random else case.make()
        inputs = case.inputs()
    grad = case.gradients and not args.no_grad
    for key, value in inputs.items():
        # Times and sizes are numbers to the probe, not inputs that anything is learnt through.
        value.requires_grad_(grad and value.is_floating_point() and key not in ("timestep", "time_ids"))
    with contextlib.nullcontext() if grad else torch.no_grad():
        outputs = case.run(model, inputs)
    tensors = {key: value.detach().contiguous() for key, value in inputs.items()}
    theirs = None
    if grad:
        first = next(iter(outputs.values()))
        tensors["grad_output"] = torch.randn(first.shape, generator=torch.Generator().manual_seed(1))
        theirs = gradients(case, model, inputs, outputs, tensors["grad_output"])
    outputs = {key: value.detach() for key, value in outputs.items()}
    given = folder / "in.safetensors"
    save_file(tensors, given)
    rows = []
    for layout, path, keys in case.layouts(model, folder):
        if layout == "single file":
            convert(args, folder / "folder", path)
        rows.append(compare(args, name, case, layout, path, keys, given, outputs, theirs))
    return rows


def convert(args, source, target):
    # A Stable Diffusion 2 UNet alone does not say what it predicts.
    command = [args.calotype, "convert", source, target, "--to", "single-file", "--prediction", "epsilon"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())


def compare(args, name, case, layout, path, keys, given, outputs, theirs):
    row = {"model": name, "layout": layout}
    grad = theirs is not None and keys is not None
    try:
        ours, row["seconds"] = probe(args, case.component, path, given, "f32", grad)
        row["f32"] = max(relative(ours[key], value) for key, value in outputs.items())
        if grad:
            row["grad"], row["worst"] = worst_gradient(ours, theirs, keys)
        half, _ = probe(args, case.component, path, given, "bf16", False)
        row["bf16"] = min(cosine(half[key], value) for key, value in outputs.items())
    except (RuntimeError, KeyError) as error:
        row["error"] = f"{type(error).__name__}: {error}"
    row["good"] = (
        "error" not in row and row["f32"] <= F32 and row["bf16"] >= BF16 and row.get("grad", 0) <= GRAD
    )
    line = f"| {name} | {layout} | " + " | ".join(
        [
            f"{row['f32']:.1e}" if "f32" in row else "-",
            f"{row['grad']:.1e}" if "grad" in row else "-",
            f"{row['bf16']:.6f}" if "bf16" in row else "-",
            f"{row['seconds']:.1f}" if "seconds" in row else "-",
            "good" if row["good"] else "**" + row.get("error", "beyond a bound: " + row.get("worst", "")) + "**",
        ]
    )
    print(line + " |", flush=True)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calotype", required=True)
    parser.add_argument("--only", help="names of cases, or parts of them, with commas between")
    parser.add_argument("--no-grad", action="store_true", help="leave the gradients out")
    parser.add_argument("--keep", help="work in this folder and keep it")
    parser.add_argument("--out", help="write the rows as JSON")
    args = parser.parse_args()
    only = args.only.split(",") if args.only else [""]
    Quickstart.calotype = args.calotype
    import transformers

    transformers.utils.logging.disable_progress_bar()
    print("| model | layout | f32 relative error | gradients | bf16 cosine | probe, s | |\n|---|---|---|---|---|---|---|")
    rows = []
    for name, case in CASES.items():
        if not any(part in name for part in only):
            continue
        folder = Path(args.keep or tempfile.mkdtemp(prefix="parity-")) / name.replace(" ", "_").replace("/", "_")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            rows += run_case(args, name, case, folder)
        finally:
            gc.collect()
            if not args.keep:
                shutil.rmtree(folder.parent)
    if Quickstart.folder:
        shutil.rmtree(Quickstart.folder)
    if args.out:
        Path(args.out).write_text(json.dumps(rows, indent=1))
    bad = [row for row in rows if not row["good"]]
    print(f"\n{len(rows) - len(bad)} good, {len(bad)} not")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
