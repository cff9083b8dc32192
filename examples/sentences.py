"""What libraries are about, by what they say: sentences embedded and clustered by cosine on one device.

The sentences are the first of the docstrings of Python, NumPy, SciPy and scikit-learn, the model is that of the package
`wordllama`, whose wheel brings its 16 MB: an embedding of each of 32,000 tokens, and a sentence is the mean of its tokens.
Clusters are named by their nearest sentences. Nobody tells them which module a sentence is from, and the picture shows how
much they find out::

    python -m pip install wordllama
    python examples/sentences.py
    python examples/sentences.py --device cuda --k 40
"""

import argparse
import importlib
import inspect
import re
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.cluster.hierarchy import leaves_list, linkage
from sklearn.metrics import adjusted_mutual_info_score
from torch.nn import functional as F

from anykmeans import kmeans

NAMES = """
asyncio calendar collections datetime decimal email.message inspect itertools logging math operator os os.path pathlib random re
socket sqlite3 ssl statistics tarfile threading typing unittest urllib.request xml.etree.ElementTree zipfile
numpy numpy.fft numpy.linalg numpy.ma numpy.random numpy.strings
scipy.fft scipy.integrate scipy.interpolate scipy.linalg scipy.ndimage scipy.optimize scipy.signal scipy.sparse
scipy.sparse.csgraph scipy.sparse.linalg scipy.spatial.distance scipy.special scipy.stats
sklearn.cluster sklearn.datasets sklearn.ensemble sklearn.linear_model sklearn.metrics sklearn.model_selection
sklearn.preprocessing
"""
MODULES = NAMES.split()

COLOURS = {"numpy": "tab:blue", "scipy": "tab:red", "sklearn": "tab:green"}
PYTHON = "black"


def colour(module):
    """Return the colour of a module's library."""
    return COLOURS.get(module.partition(".")[0], PYTHON)


def first_sentence(docstring):
    """Return the first sentence of a docstring, or nothing; a signature in front is none."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        text = " ".join(paragraph.split())
        if not re.match(r"[\w.]+\(", text):
            return re.split(r"(?<=[.:])\s", text)[0]
    return ""


def sentences():
    """Return the first sentences of public functions and classes, each once, with their modules; of Python's classes, methods', too."""
    found = {}
    for name in MODULES:
        module = vars(importlib.import_module(name))
        public = module.get("__all__") or [each for each in module if each[0] != "_"]
        for each in sorted(public):
            thing = module.get(each)
            parts = [thing]
            if inspect.isclass(thing) and colour(name) == PYTHON:
                parts += [part for key, part in sorted(vars(thing).items()) if key[0] != "_"]
            for part in filter(callable, parts):
                text = first_sentence(part.__doc__ if isinstance(part.__doc__, str) else "")
                if len(text.split()) > 3:
                    found.setdefault(text, name)
    return list(found), np.asarray(list(found.values()))


def model(device):
    """Return the embeddings of tokens (32000, 256), on the device, and the tokenizer."""
    package = find_spec("wordllama")
    if package is None:
        sys.exit("the model is that of the package wordllama: python -m pip install wordllama")
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    # From its files, as its own loader does not look for the tokenizer where the wheel has it.
    folder = Path(package.origin).parent
    weights = load_file(folder / "weights/l2_supercat_256.safetensors", device)["embedding.weight"]
    return weights, Tokenizer.from_file(
        str(folder / "tokenizers/l2_supercat_tokenizer_config.json")
    )


def embed(texts, weights, tokenizer):
    """Return the mean of the embeddings of each text's tokens, float32 (n, 256), where the weights are."""
    tokens = [each.ids for each in tokenizer.encode_batch(texts, add_special_tokens=False)]
    counts = torch.tensor([len(each) for each in tokens], device=weights.device)
    flat = torch.tensor([token for each in tokens for token in each], device=weights.device)
    # Numbers of 16 bits are added in float64 without rounding: so the means, too, are the same bits on every device.
    sums = F.embedding_bag(flat, weights.double(), counts.cumsum(0) - counts, mode="sum")
    return (sums / counts[:, None]).float()


def plot(shares, names, modules, path):
    """Write which clusters the sentences of each module are in: shares (k, modules)."""
    k, m = shares.shape
    figure = Figure(figsize=(16, 2.6 + 0.27 * k), layout="constrained")
    ax = figure.subplots()
    cells = np.asarray([[to_rgba(colour(name)) for name in modules]] * k)
    cells[..., 3] = np.minimum(1, 1.6 * shares)
    ax.imshow(cells, aspect="auto")
    ax.set_yticks(range(k), names, fontsize=9)
    ax.set_xticks(range(m), modules, fontsize=9, rotation=90)
    for label in ax.get_xticklabels():
        label.set_color(colour(label.get_text()))
    ax.set_xticks(np.arange(m + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(k + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="0.9", linewidth=0.5)
    ax.tick_params(which="both", length=0)
    ax.set_title(
        f"{k} clusters by cosine of what documentation says, named by their nearest sentence;\n"
        "below, the modules: the darker a field, the larger the share of the module's sentences"
    )
    libraries = {"Python": PYTHON} | COLOURS
    patches = [Patch(color=each, label=name) for name, each in libraries.items()]
    figure.legend(handles=patches, loc="lower left", frameon=False)  # below the names
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--k", type=int, default=28, help="how many clusters (default: 28)")
    parser.add_argument("--device", default="cpu", help="any that has float64 (default: cpu)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("examples/output"), metavar="DIR")
    options = parser.parse_args()
    if options.k < 2:
        parser.error("--k must be at least 2")

    weights, tokenizer = model(options.device)
    texts, origins = sentences()
    x = embed(texts, weights, tokenizer)  # (n, 256) of many lengths, which cosine takes no note of

    agreement = {}
    for metric in ("euclidean", "cosine"):
        begin = time.perf_counter()
        result = kmeans(x, options.k, metric=metric, n_init=5, rng=options.seed)
        seconds = time.perf_counter() - begin
        agreement[metric] = adjusted_mutual_info_score(origins, result.labels.cpu())
    print(f"{len(texts):,} sentences of {len(MODULES)} modules, {options.k} clusters on {x.device}")
    print(f"{seconds:.2f} s, {result.n_iter} iterations, kernel {result.kernel}\n")

    cosines = (F.normalize(x) @ result.centroids.T).cpu().numpy()  # centroids have length 1
    labels = result.labels.cpu().numpy()
    order = leaves_list(linkage(result.centroids.cpu(), "average", "cosine", optimal_ordering=True))
    names, counts = [], []
    print("size  cosine  the two nearest sentences, and where most of all are from")
    for j in order:
        inside = np.flatnonzero(labels == j)
        mean = cosines[inside, j].mean()
        near = inside[np.argsort(-cosines[inside, j], kind="stable")[:2]]
        modules = Counter(origins[inside].tolist())
        names.append(shorten(texts[near[0]], 62, placeholder=" ..."))
        counts.append([modules[name] for name in MODULES])
        most = ", ".join(f"{name} {count}" for name, count in modules.most_common(3))
        lines = [shorten(texts[i], 100, placeholder=" ...") for i in near] + [most]
        print(f"{len(inside):4}  {mean:6.2f}  " + f"\n{'':14}".join(lines))

    shortest, longest = x.norm(dim=1).aminmax()
    print("\nagreement of clusters and modules, which is 0 by chance and 1 at most:")
    print(f"cosine {agreement['cosine']:.2f}, euclidean {agreement['euclidean']:.2f}, ", end="")
    print(f"which sees lengths, too, from {shortest:.1f} to {longest:.1f}")

    shares = np.asarray(counts) / np.sum(counts, axis=0)
    columns = np.lexsort((-shares.max(axis=0), shares.argmax(axis=0)))  # along the diagonal
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "sentences.png"
    plot(shares[:, columns], names, [MODULES[j] for j in columns], path)
    print(f"\nwrote {path}")
    if agreement["cosine"] <= 0.1:
        sys.exit("the clusters know next to nothing of the modules")


if __name__ == "__main__":
    main()
