"""Checkpoints as torch, numpy and tar write them, each with its tensors as safetensors beside it.

    python make_golden.py

Made with torch 2.15, numpy 2, safetensors 0.8. `NAME.safetensors` holds what the file NAME must read as.
"""

import argparse
import collections
import gzip
import io
import json
import pathlib
import pickle
import tarfile
import zipfile

import numpy as np
import safetensors.torch
import torch

HERE = pathlib.Path(__file__).parent


def tensors():
    """One tensor of each kind that a checkpoint may hold."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(4, 6, generator=generator)
    integers = torch.arange(-3, 5)
    return collections.OrderedDict(
        {
            "f32": base,
            "f64": base[0].double() / 3,
            "f16": base[1].half(),
            "bf16": base[2].bfloat16(),
            "i64": integers * 2**40,
            "i32": integers.int(),
            "i16": integers.short(),
            "i8": integers.char(),
            "u8": (integers + 3).byte(),
            "bool": integers > 0,
            "scalar": torch.tensor(2.5),
            "empty": torch.zeros(0, 3),
            "same": base,
            "transposed": base.t(),
            "columns": base[:, 1:5:2],
            "offset": base[2:3, 3:],
            "expanded": torch.tensor([[1.0, 2.0]]).expand(3, 2),
            "permuted": torch.randn(2, 3, 2, 2, generator=generator).contiguous(memory_format=torch.channels_last),
            "half_view": torch.arange(10).half()[3:7],
        }
    )


def expect(name, values):
    """Writes what a file must read as."""
    dense = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in values.items()}
    safetensors.torch.save_file(dense, HERE / f"{name}.safetensors")


def save(name, content, **options):
    torch.save(content, HERE / name, **options)


def torch_files():
    values = tensors()
    for protocol in (2, 4):
        save(f"zip_protocol{protocol}.pt", values, pickle_protocol=protocol)
    save("legacy.pt", values, _use_new_zipfile_serialization=False)
    save("legacy_protocol4.pt", values, _use_new_zipfile_serialization=False, pickle_protocol=4)
    expect("torch", values)

    deflated = zipfile.ZipFile(HERE / "deflated.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(HERE / "zip_protocol2.pt") as stored, deflated:
        for entry in stored.namelist():
            deflated.writestr(zipfile.ZipInfo(entry), stored.read(entry), zipfile.ZIP_DEFLATED)

    eights = torch.arange(6, dtype=torch.float32)
    rare = {"e4m3": eights.to(torch.float8_e4m3fn)[1:], "e5m2": eights.to(torch.float8_e5m2), "u16": eights.to(torch.uint16)}
    save("untyped.pt", rare)
    expect("untyped", rare)

    torch.manual_seed(2)
    layer = torch.nn.Linear(3, 2)
    parameters = {f"module.{key}": value for key, value in layer.named_parameters()}
    save("parameters.pt", {"model": layer.state_dict(), "ema": parameters, "step": 7, "optimizer": {"w": torch.ones(2)}})
    expect("parameters.model", layer.state_dict())
    expect("parameters.ema", parameters)

    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    lightning = {
        "epoch": 3,
        "global_step": 2**40,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": layer.state_dict(),
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "best_model_path": "päth"}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"last_epoch": 0, "_last_lr": [1e-3], "milestones": None, "flags": (True, False, ())}],
        "hyper_parameters": {"size": 32, "rate": 1e-4, "names": ["a", "b"], "counts": collections.defaultdict(int, {"x": 1})},
    }
    save("lightning.ckpt", lightning)
    expect("lightning", layer.state_dict())
    lightning["hyper_parameters"]["arguments"] = argparse.Namespace(lr=1.0, path=pathlib.PurePosixPath("a/b"))
    lightning["callbacks"][argparse.Action] = {"x": 1}
    save("objects.ckpt", lightning)


def numpy_files():
    values = tensors()
    base = values["f32"].numpy()
    arrays = {
        "f32": base,
        "f16": values["f16"].numpy(),
        "f64": values["f64"].numpy(),
        "i64": values["i64"].numpy(),
        "bool": values["bool"].numpy(),
        "fortran": np.asfortranarray(base),
        "big": base.astype(">f4"),
        "scalar": np.array(2.5, dtype=np.float32),
        "rows": base[::2],
        "number": np.float32(1.5),
        "count": np.int64(-7),
        "raw": bytes(range(256)),
        "set": {1, 2},
    }
    for protocol in (2, 3, 4, 5):
        (HERE / f"numpy_protocol{protocol}.pickle").write_bytes(pickle.dumps(arrays, protocol))
    native = {key: torch.from_numpy(np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="))).reshape(value.shape))
              for key, value in arrays.items() if isinstance(value, np.ndarray)}
    expect("numpy", native)


def nemo_files():
    weights = io.BytesIO()
    torch.save(tensors(), weights)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, data in [("./", None), ("./model_config.yaml", b"name: t\xc3\xadny\n"), ("./model_weights.ckpt", weights.getvalue())]:
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            entry.size = len(data or b"")
            archive.addfile(entry, io.BytesIO(data or b""))
    (HERE / "plain.nemo").write_bytes(tar.getvalue())
    (HERE / "packed.nemo").write_bytes(gzip.compress(tar.getvalue(), mtime=0))


def sharded_files():
    values = {key: value.contiguous() for key, value in list(tensors().items())[:4]}
    parts = {"1": dict(list(values.items())[:2]), "2": dict(list(values.items())[2:])}
    size = sum(value.numel() * value.element_size() for value in values.values())
    for ending, write in [("safetensors", safetensors.torch.save_file), ("bin", torch.save)]:
        map = {}
        for number, part in parts.items():
            name = f"shard-{number}-of-2.{ending}"
            write(part, HERE / name)
            map |= {key: name for key in part}
        index = {"metadata": {"total_size": size}, "weight_map": map}
        (HERE / f"shard.{ending}.index.json").write_text(json.dumps(index))
    expect("sharded", values)


def embeddings():
    """Learned words: of web interfaces, of the original code (whose ParameterDict is an object), of diffusers."""
    vectors = torch.arange(8, dtype=torch.float32).view(2, 4) / 8
    counts = {"string_to_token": {"*": 265}, "name": "style", "step": 10, "sd_checkpoint": None, "sd_checkpoint_name": None}
    save("embedding_web.pt", counts | {"string_to_param": {"*": torch.nn.Parameter(vectors)}})
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})
    save("embedding_original.pt", {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters})
    save("embedding_diffusers.bin", {"<toy>": vectors[0]})
    save("embedding_xl.pt", {"clip_l": vectors, "clip_g": torch.cat([vectors, vectors], 1).half()})


if __name__ == "__main__":
    embeddings()
    torch_files()
    numpy_files()
    nemo_files()
    sharded_files()
