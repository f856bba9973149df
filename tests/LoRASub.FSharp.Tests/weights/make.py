# Makes the files of this folder with NumPy and PyTorch (here NumPy 1.24.2 and PyTorch 1.13): one small Vision
# Transformer as other programs save it, and its features by NumPy from the Flax arrays. Run it in this folder.
import argparse, collections, json, math, struct
import numpy as np
import torch

d, depth, heads, patch, size, hidden = 8, 2, 2, 4, 8, 16
rng = np.random.default_rng(1993)


def draw(*shape):
    return rng.normal(size=shape).astype(np.float32)


# Flax's arrays, as Google's AugReg saves them
flax = {
    "cls": draw(1, 1, d),
    "embedding/kernel": draw(patch, patch, 3, d) / 7,
    "embedding/bias": draw(d),
    "Transformer/posembed_input/pos_embedding": draw(1, 1 + (size // patch) ** 2, d),
    "Transformer/encoder_norm/scale": 1 + draw(d) / 5,
    "Transformer/encoder_norm/bias": draw(d),
    "head/kernel": draw(d, 5),
    "head/bias": draw(5),
    "pre_logits/kernel": draw(d, d),
    "pre_logits/bias": draw(d),
}
for i in range(depth):
    block = f"Transformer/encoderblock_{i}/"
    attention = block + "MultiHeadDotProductAttention_1/"
    for norm in ("LayerNorm_0", "LayerNorm_2"):
        flax[block + norm + "/scale"] = 1 + draw(d) / 5
        flax[block + norm + "/bias"] = draw(d)
    for part in ("query", "key", "value"):
        flax[attention + part + "/kernel"] = draw(d, heads, d // heads)
        flax[attention + part + "/bias"] = draw(heads, d // heads)
    flax[attention + "out/kernel"] = draw(heads, d // heads, d)
    flax[attention + "out/bias"] = draw(d)
    flax[block + "MlpBlock_3/Dense_0/kernel"] = draw(d, hidden)
    flax[block + "MlpBlock_3/Dense_0/bias"] = draw(hidden)
    flax[block + "MlpBlock_3/Dense_1/kernel"] = draw(hidden, d)
    flax[block + "MlpBlock_3/Dense_1/bias"] = draw(d)

image = draw(1, size, size, 3)
# DINOv2's factors after the attention and the MLP of each block
scales = [[draw(d), draw(d)] for _ in range(depth)]


def features(scales=[[1, 1]] * depth):
    w = {name: array.astype(np.float64) for name, array in flax.items()}
    gelu = np.vectorize(lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))))

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * w[name + "/scale"] + w[name + "/bias"]

    side = size // patch
    patches = image.astype(np.float64).reshape(1, side, patch, side, patch, 3)
    x = np.einsum("bypxqc,pqcd->byxd", patches, w["embedding/kernel"]) + w["embedding/bias"]
    x = np.concatenate([w["cls"], x.reshape(1, side * side, d)], 1)
    x = x + w["Transformer/posembed_input/pos_embedding"]
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}/"
        attention = block + "MultiHeadDotProductAttention_1/"
        y = norm(x, block + "LayerNorm_0")
        q, k, v = (
            np.einsum("bld,dhk->blhk", y, w[attention + part + "/kernel"]) + w[attention + part + "/bias"]
            for part in ("query", "key", "value")
        )
        a = np.einsum("blhk,bmhk->bhlm", q, k) / math.sqrt(d // heads)
        a = np.exp(a - a.max(-1, keepdims=True))
        a = a / a.sum(-1, keepdims=True)
        y = np.einsum("bhlm,bmhk->blhk", a, v)
        y = np.einsum("blhk,hkd->bld", y, w[attention + "out/kernel"]) + w[attention + "out/bias"]
        x = x + scales[i][0] * y
        y = norm(x, block + "LayerNorm_2")
        y = gelu(y @ w[block + "MlpBlock_3/Dense_0/kernel"] + w[block + "MlpBlock_3/Dense_0/bias"])
        y = y @ w[block + "MlpBlock_3/Dense_1/kernel"] + w[block + "MlpBlock_3/Dense_1/bias"]
        x = x + scales[i][1] * y
    return norm(x, "Transformer/encoder_norm")[:, 0]


# the same in timm's names and layout
timm = collections.OrderedDict()
timm["cls_token"] = flax["cls"]
timm["pos_embed"] = flax["Transformer/posembed_input/pos_embedding"]
timm["patch_embed.proj.weight"] = np.moveaxis(flax["embedding/kernel"], (3, 2), (0, 1))
timm["patch_embed.proj.bias"] = flax["embedding/bias"]
for i in range(depth):
    block = f"Transformer/encoderblock_{i}/"
    attention = block + "MultiHeadDotProductAttention_1/"
    for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
        timm[f"blocks.{i}.{ours}.weight"] = flax[block + theirs + "/scale"]
        timm[f"blocks.{i}.{ours}.bias"] = flax[block + theirs + "/bias"]
    parts = ("query", "key", "value")
    timm[f"blocks.{i}.attn.qkv.weight"] = np.concatenate(
        [flax[attention + part + "/kernel"].reshape(d, d).T for part in parts]
    )
    timm[f"blocks.{i}.attn.qkv.bias"] = np.concatenate([flax[attention + part + "/bias"].reshape(d) for part in parts])
    timm[f"blocks.{i}.attn.proj.weight"] = flax[attention + "out/kernel"].reshape(d, d).T
    timm[f"blocks.{i}.attn.proj.bias"] = flax[attention + "out/bias"]
    for ours, theirs in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
        timm[f"blocks.{i}.mlp.{ours}.weight"] = flax[block + f"MlpBlock_3/{theirs}/kernel"].T
        timm[f"blocks.{i}.mlp.{ours}.bias"] = flax[block + f"MlpBlock_3/{theirs}/bias"]
timm["norm.weight"] = flax["Transformer/encoder_norm/scale"]
timm["norm.bias"] = flax["Transformer/encoder_norm/bias"]


# by the format's specification
def safetensors(path, tensors):
    header, data = {}, b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        kind = {"float32": "F32", "float64": "F64"}[str(array.dtype)]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


safetensors("timm.safetensors", timm)
safetensors("features.safetensors", {"image": np.moveaxis(image, 3, 1), "features": features(), "scaled": features(scales)})

np.savez("augreg.npz", **flax)
np.savez_compressed("augreg-compressed.npz", **{name: np.asfortranarray(a) for name, a in flax.items()})


def torch_dict(prefix="", dtype=torch.float32):
    return collections.OrderedDict(
        (prefix + name, torch.from_numpy(np.ascontiguousarray(array)).to(dtype)) for name, array in timm.items()
    )


state = torch_dict()
state._metadata = collections.OrderedDict([("", {"version": 1})])
torch.save(state, "timm.pth")
torch.save(torch_dict(dtype=torch.bfloat16), "timm-bfloat16.pth")
torch.save({"x": torch.zeros(2)}, "legacy.pth", _use_new_zipfile_serialization=False)

gammas = {f"blocks.{i}.ls{k + 1}.gamma": torch.from_numpy(scales[i][k]) for i in range(depth) for k in range(2)}
torch.save(dict(torch_dict(), mask_token=torch.zeros(1, d), **gammas), "dinov2.pth")

# views of one storage, a parameter and a transposed tensor
flat = torch.cat([t.flatten() for t in torch_dict().values()])
views, start = {}, 0
for name, t in torch_dict().items():
    views[name] = flat[start : start + t.numel()].view(t.shape)
    start += t.numel()
views["blocks.0.mlp.fc1.weight"] = torch.nn.Parameter(views["blocks.0.mlp.fc1.weight"].T.contiguous().T)
torch.save({"model": views}, "views.pt")

# DINO's checkpoint: two networks, their heads, an optimizer's state, and a program's arguments
student = {"module.backbone." + name: t + 1 for name, t in torch_dict().items()}
teacher = {"backbone." + name: t for name, t in torch_dict().items()}
weights = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))]
optimizer = torch.optim.AdamW([{"params": [weight]} for weight in weights], lr=0.1)
sum(weight.sum() for weight in weights).backward()
optimizer.step()
torch.save(
    {
        "student": dict(student, **{"module.head.mlp.0.weight": torch.zeros(4, d)}),
        "teacher": dict(teacher, **{"head.mlp.0.weight": torch.zeros(4, d)}),
        "optimizer": optimizer.state_dict(),
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_tiny", lr=0.0005),
    },
    "dino.pth",
)

# Hugging Face's ViTForImageClassification
hugging = {
    "vit.embeddings.cls_token": timm["cls_token"],
    "vit.embeddings.position_embeddings": timm["pos_embed"],
    "vit.embeddings.patch_embeddings.projection.weight": timm["patch_embed.proj.weight"],
    "vit.embeddings.patch_embeddings.projection.bias": timm["patch_embed.proj.bias"],
    "vit.layernorm.weight": timm["norm.weight"],
    "vit.layernorm.bias": timm["norm.bias"],
    "classifier.weight": np.zeros((5, d), np.float32),
    "classifier.bias": np.zeros(5, np.float32),
}
for i in range(depth):
    for kind in ("weight", "bias"):
        block = f"vit.encoder.layer.{i}."
        for part, rows in zip(("query", "key", "value"), np.split(timm[f"blocks.{i}.attn.qkv.{kind}"], 3)):
            hugging[f"{block}attention.attention.{part}.{kind}"] = rows
        for ours, theirs in (
            ("norm1", "layernorm_before"),
            ("norm2", "layernorm_after"),
            ("attn.proj", "attention.output.dense"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ):
            hugging[f"{block}{theirs}.{kind}"] = timm[f"blocks.{i}.{ours}.{kind}"]
torch.save({name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in hugging.items()}, "pytorch_model.bin")
