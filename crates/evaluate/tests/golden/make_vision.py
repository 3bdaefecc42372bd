"""Makes vision.json: what transformers, torch and scikit-learn make of tiny models and pictures of tests/it/vision.rs.

Weights and pictures are a hash of their key and index (`formula`), which the test computes too, so that the file holds
results only. Pictures have the size that the networks take: how pictures are resized is tested elsewhere.

    python make_vision.py

with torch 2.15, transformers 5.23 and scikit-learn 1.9; nothing is downloaded. The tokenizer's files are those that
`calotype` writes with a CLIP model (TOKENIZER).
"""

import functools
import json
import os
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, ViTConfig, ViTForImageClassification

SIDE, CLASSES, OF_CLASS = 32, 10, 4
# Two classes of one name: their logits are equal.
NAMES = ["tench", "missile", "red fox", "sunglasses", "great white shark", "missile", "crane", "toilet paper", "kite", "cauldron"]
TEMPLATES = ["a photo of a {}.", "a bad photo of the {}.", "itap of many {}"]


def formula(key, count):
    """Uniform in -1..1, multiples of 2^-23, from the key's hash (FNV-1a) and the index."""
    start = functools.reduce(lambda h, byte: (h ^ byte) * 0x01000193 % 2**32, key.encode(), 0x811C9DC5)
    x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B9) + np.uint32(start)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return (x >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)


def parameter(key, shape):
    """Weights of unit variance of outputs; scales around one; shifts around zero."""
    values = formula(key, int(np.prod(shape, dtype=np.int64)))
    if len(shape) > 1:
        values = values * np.float32(np.sqrt(3.0 / np.prod(shape[1:])))
    elif key.endswith("weight"):
        values = np.float32(1.0) + values * np.float32(0.3)
    else:
        values = values * np.float32(0.2)
    return torch.from_numpy(values.reshape(shape))


def published(key):
    """The key of a ViT in checkpoints, which the library renames when it loads them."""
    for new, old in [
        ("vit.layers.", "vit.encoder.layer."),
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ]:
        key = key.replace(new, old)
    return key


def fill(model, names=lambda key: key):
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point() and value.dim() > 0:
                value.copy_(parameter(names(key), tuple(value.shape)))
            elif key == "logit_scale":
                value.fill_(2.0)
    return model.eval()


def picture(number):
    """16 blocks of 8 x 8 pixels, `[side, side, 3]`."""
    levels = np.floor((formula(f"picture.{number}", 48) + 1) * 128).astype(np.uint8).reshape(4, 4, 3)
    return levels.repeat(8, 0).repeat(8, 1)


def pixels(count, mean, deviation):
    levels = torch.from_numpy(np.stack([picture(number) for number in range(count)])).permute(0, 3, 1, 2)
    return (levels.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)


def accuracy(output, target, topk):
    best = output.topk(max(topk), 1, True, True)[1]
    right = best.eq(target.view(-1, 1))
    return {str(k): float(right[:, :k].any(1).float().mean()) for k in topk}


def rounded(tensor):
    return [[float(f"{x:.8g}") for x in row] for row in tensor.detach().double().tolist()]


def vit(labels):
    config = ViTConfig(
        image_size=SIDE, patch_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_labels=CLASSES, layer_norm_eps=1e-12, attn_implementation="eager",
    )
    model = fill(ViTForImageClassification(config), published)
    with torch.no_grad():
        model.classifier.weight[7] = model.classifier.weight[3]
        model.classifier.bias[7] = model.classifier.bias[3]
        logits = model(pixel_values=pixels(len(labels), [0.5] * 3, [0.5] * 3)).logits
    assert torch.equal(logits[:, 3], logits[:, 7])
    return {"logits": rounded(logits), "accuracy": accuracy(logits, labels, (1, 5))}


def clip():
    towers = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, hidden_act="quick_gelu")
    config = CLIPConfig(
        text_config=dict(vocab_size=49408, max_position_embeddings=77, **towers),
        vision_config=dict(image_size=SIDE, patch_size=8, **towers),
        projection_dim=16, attn_implementation="eager",
    )
    model = fill(CLIPModel(config))
    tokenizer = CLIPTokenizer.from_pretrained(os.environ["TOKENIZER"])

    def texts(list_of_texts):
        tokens = tokenizer(list_of_texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        with torch.no_grad():
            states = model.text_model(input_ids=tokens.input_ids).pooler_output
            return F.normalize(model.text_projection(states), dim=-1)

    def images(count):
        mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
        with torch.no_grad():
            states = model.vision_model(pixel_values=pixels(count, mean, deviation)).pooler_output
            return model.visual_projection(states)

    return texts, images, float(model.logit_scale.exp())


def zero_shot(texts, images, labels):
    directions = []
    for name in NAMES:
        mean = texts([template.format(name) for template in TEMPLATES]).mean(0)
        directions.append(mean / mean.norm())
    logits = 100.0 * F.normalize(images(len(labels)), dim=-1) @ torch.stack(directions).T
    # A product of matrices may round equal columns unlike; they are equal in all but its order of summing.
    logits[:, 5] = logits[:, 1]
    return {"logits": rounded(logits), "accuracy": accuracy(logits, labels, (1, 5))}


def captions(number):
    """One to three captions of a picture; every fifth picture has one that others have too."""
    own = [f"picture number {number} of {kind}" for kind in ("a red fox", "the old crane", "many kites")]
    return own[: 1 + number % 3] + (["a thing"] if number % 5 == 0 else [])


def retrieval(texts, images, count):
    all_captions = [(number, caption) for number in range(count) for caption in captions(number)]
    of_picture = torch.tensor([number for number, _ in all_captions])
    unique = list(dict.fromkeys(caption for _, caption in all_captions))
    vectors = dict(zip(unique, texts(unique)))
    left, right = F.normalize(images(count), dim=-1), torch.stack([vectors[caption] for _, caption in all_captions])
    # Sums of products one by one: equal captions have equal cosines.
    cosines = (left.double()[:, None, :] * right.double()[None, :, :]).sum(-1).float()
    found = {"image_to_text": {}, "text_to_image": {}}
    for k in (1, 5, 10):
        best = cosines.topk(k, 1)[1]
        hits = (of_picture[best] == torch.arange(count)[:, None]).any(1)
        found["image_to_text"][str(k)] = float(hits.double().mean())
        best = cosines.T.topk(k, 1)[1]
        hits = (best == of_picture[:, None]).any(1)
        found["text_to_image"][str(k)] = float(hits.double().mean())
    return found


def similarity(texts, images, scale):
    words = ["a red fox", "a photo of a crane", "x"]
    cosines = F.normalize(images(2), dim=-1) @ texts(words).T
    return {"texts": words, "cosines": rounded(cosines), "probabilities": rounded((scale * cosines).softmax(1))}


def linear_probe(images, labels):
    features = images(len(labels)).double().numpy()
    learnt = np.arange(len(labels)) % 4 != 0
    fitted = LogisticRegression(C=0.316, solver="newton-cg", max_iter=100_000, tol=1e-14)
    fitted.fit(features[learnt], labels.numpy()[learnt])
    logits = torch.from_numpy(fitted.decision_function(features[~learnt]))
    return {"logits": rounded(logits), "accuracy": accuracy(logits, labels[torch.from_numpy(~learnt)], (1, 5))}


def main():
    torch.set_num_threads(1)
    labels = torch.arange(CLASSES).repeat_interleave(OF_CLASS)
    texts, images, scale = clip()
    golden = {
        "names": NAMES,
        "templates": TEMPLATES,
        "vit": vit(labels),
        "zero_shot": zero_shot(texts, images, labels),
        "retrieval": retrieval(texts, images, 20),
        "similarity": similarity(texts, images, scale),
        "linear_probe": linear_probe(images, labels),
    }
    # A line for each part, which is as much as a difference can show.
    parts = ",\n".join(f"{json.dumps(name)}: {json.dumps(part)}" for name, part in golden.items())
    pathlib.Path(__file__).with_name("vision.json").write_text(f"{{\n{parts}\n}}\n")


if __name__ == "__main__":
    main()
