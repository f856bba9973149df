# The class-token features of a plain Vision Transformer in timm's names, with numpy alone: an independent reader of what
# `lorasub export` writes. compare-export.fsx and the tests compare its features with the library's.
#
#     python3 numpy-vit.py WEIGHTS IMAGES FEATURES [ADAPTER]
#
# All files are safetensors. IMAGES holds `images` [n, channels, H, W] as the network receives them; FEATURES receives
# `features` [n, d]. ADAPTER is a folder with a LoRA adapter for PEFT, which is added to the weights.
import json
import math
import struct
import sys

import numpy as np


def read(path):
    """Tensors in float64 and metadata."""
    data = open(path, "rb").read()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__", {})
    types = {"F32": "<f4", "F64": "<f8", "I64": "<i8"}

    def array(entry):
        first, last = entry["data_offsets"]
        numbers = np.frombuffer(data[start + first:start + last], types[entry["dtype"]])
        return numbers.reshape(entry["shape"]).astype(np.float64)

    return {name: array(entry) for name, entry in header.items()}, metadata


def write(path, name, array):
    array = np.ascontiguousarray(array, "<f8")
    header = {name: {"dtype": "F64", "shape": array.shape, "data_offsets": [0, array.nbytes]}}
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + array.tobytes())


def add_adapter(weights, folder):
    pairs, _ = read(f"{folder}/adapter_model.safetensors")
    config = json.load(open(f"{folder}/adapter_config.json"))
    for name in pairs:
        if name.endswith(".lora_A.weight"):
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            assert any(layer.endswith("." + target) for target in config["target_modules"])
            change = pairs[name.replace("lora_A", "lora_B")] @ pairs[name]
            weights[layer + ".weight"] = weights[layer + ".weight"] + change * config["lora_alpha"] / config["r"]


erf = np.vectorize(math.erf)


def features(weights, metadata, images):
    blocks_epsilon, final_epsilon = (float(x) for x in metadata["norm-epsilon"].split(","))
    heads = int(metadata["heads"])

    def linear(name, x):
        y = x @ weights[name + ".weight"].T
        return y + weights[name + ".bias"] if name + ".bias" in weights else y

    def norm(name, epsilon, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon)
        return x * weights[name + ".weight"] + weights[name + ".bias"]

    def attention(name, x):
        n, tokens, d = x.shape
        q, k, v = linear(name + ".qkv", x).reshape(n, tokens, 3, heads, d // heads).transpose(2, 0, 3, 1, 4)
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(d // heads)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = scores / scores.sum(-1, keepdims=True) @ v
        return linear(name + ".proj", mixed.swapaxes(1, 2).reshape(n, tokens, d))

    kernel = weights["patch_embed.proj.weight"]
    n, channels, side, _ = images.shape
    d, p = kernel.shape[0], kernel.shape[2]
    g = side // p
    patches = images.reshape(n, channels, g, p, g, p).transpose(0, 2, 4, 1, 3, 5).reshape(n, g * g, -1)
    x = patches @ kernel.reshape(d, -1).T + weights["patch_embed.proj.bias"]
    x = np.concatenate([np.broadcast_to(weights["cls_token"], (n, 1, d)), x], 1) + weights["pos_embed"]

    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    for i in range(depth):
        block = f"blocks.{i}"
        x = x + attention(block + ".attn", norm(block + ".norm1", blocks_epsilon, x))
        hidden = linear(block + ".mlp.fc1", norm(block + ".norm2", blocks_epsilon, x))
        x = x + linear(block + ".mlp.fc2", hidden * (1 + erf(hidden / math.sqrt(2))) / 2)

    return norm("norm", final_epsilon, x)[:, 0]


if __name__ == "__main__":
    weights, metadata = read(sys.argv[1])
    if len(sys.argv) > 4:
        add_adapter(weights, sys.argv[4])
    images, _ = read(sys.argv[2])
    write(sys.argv[3], "features", features(weights, metadata, images["images"]))
