"""Semantic maps of table1_small's training photos, which come without stuff maps.

Pixels of an annotated object have its COCO category (of all 80; the smallest object that covers them), crowds are
ignored. The other pixels are divided into regions: cells of the ImageNet backbone's features, clustered over all
training photos (k-means). A region is no named class such as "sky", but it is found by how it looks, and is the same
kind of surface in all photos. The backbone is the one that all compared systems start from, so that the maps hold no
knowledge that only the semantic branch has, but for the categories beyond the compared classes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy.cluster.vq import kmeans2
from torch import Tensor

from htc_model.config import ModelConfig, load_preset
from htc_model.masks.rle import decode_rle
from htc_model.network.efficientnet import EfficientNetLite0
from htc_model.preprocess import build_batch
from htc_model.training.annotation_parsing import to_rle
from htc_model.training.pretrained import load_imagenet_lite0
from htc_model.training.semantic_targets import rasterise_semantic

REGIONS = 16
# Cells that each photo gives to the clustering, and the clustering's random start.
_CELLS_PER_PHOTO = 64
_SEED = 1901
_SHORT_SIDE = 320
# Of C2..C5, the levels whose features a cell joins: C4 for where a surface ends, C5 for what it is; at C4's stride.
_FINE, _COARSE, _STRIDE = 2, 3, 16


def count_labels(document: Mapping[str, Any]) -> int:
    """Count the labels of the maps: categories, then regions."""
    return len(document["categories"]) + REGIONS


def write_stuff_maps(document: Mapping[str, Any], data: Path, folder: Path) -> None:
    """Write a PNG per image of a COCO document with all categories; does nothing if all are there.

    Args:
        document: file names are relative to `data`; the maps have the same names in `folder`.
    """
    paths = {image["id"]: (folder / image["file_name"]).with_suffix(".png") for image in document["images"]}
    if all(path.exists() for path in paths.values()):
        return
    config = load_preset("htc_lite0_fpn")
    config = replace(config, resize=replace(config.resize, short_side=_SHORT_SIDE, long_side=_SHORT_SIDE * 5 // 3))
    features = {image["id"]: features for image, features in _features(document, data, config)}
    centres = _cluster(document, features)
    objects = _objects_by_image(document)
    for image in document["images"]:
        path = paths[image["id"]]
        path.parent.mkdir(parents=True, exist_ok=True)
        size = image["height"], image["width"]
        regions = _nearest(features[image["id"]], centres, size)
        aside = path.with_suffix(".part")
        Image.fromarray(draw_map(objects.get(image["id"], []), regions, document)).save(aside, format="PNG")
        aside.replace(path)


def draw_map(
    objects: list[Mapping[str, Any]], regions: NDArray[np.uint8], document: Mapping[str, Any]
) -> NDArray[np.uint8]:
    """Draw an image's objects over its regions: [H, W] uint8, categories from 0, regions behind them."""
    height, width = regions.shape
    label_of = {category["id"]: label for label, category in enumerate(document["categories"])}
    masks = [decode_rle(to_rle(entry["segmentation"], (height, width))) for entry in objects]
    is_crowd = [bool(entry.get("iscrowd")) for entry in objects]
    single = [mask for mask, crowd in zip(masks, is_crowd, strict=True) if not crowd]
    labels = [label_of[entry["category_id"]] for entry, crowd in zip(objects, is_crowd, strict=True) if not crowd]
    crowds = [mask for mask, crowd in zip(masks, is_crowd, strict=True) if crowd]
    drawn = rasterise_semantic(
        torch.from_numpy(np.array(single, np.uint8).reshape(-1, height, width)),
        torch.tensor(labels, dtype=torch.int64),
        torch.from_numpy(np.array(crowds, np.uint8).max(axis=0)) if crowds else None,
        other_label=len(label_of),
    ).numpy()
    return np.where(drawn == len(label_of), len(label_of) + regions, drawn).astype(np.uint8)


def _objects_by_image(document: Mapping[str, Any]) -> dict[int, list[Mapping[str, Any]]]:
    objects: dict[int, list[Mapping[str, Any]]] = {}
    for entry in document["annotations"]:
        objects.setdefault(entry["image_id"], []).append(entry)
    return objects


def _features(
    document: Mapping[str, Any], data: Path, config: ModelConfig
) -> Iterator[tuple[Mapping[str, Any], NDArray[np.float16]]]:
    """Compute each image's cells at stride 16: [C, h, w] of unit length."""
    backbone = EfficientNetLite0()
    prefix = "backbone."
    backbone.load_state_dict({name.removeprefix(prefix): each for name, each in load_imagenet_lite0().items()})
    backbone.eval()
    for image in document["images"]:
        with Image.open(data / image["file_name"]) as file:
            pixels = np.asarray(file.convert("RGB"))
        batch = build_batch([pixels], config, "cpu")
        with torch.inference_mode():
            levels = backbone(batch.pixels)
            # Averaged over neighbours, so that a surface is not divided by its edges and texture.
            fine = F.avg_pool2d(levels[_FINE], 3, stride=1, padding=1, count_include_pad=False)
            coarse = F.interpolate(levels[_COARSE], size=fine.shape[-2:], mode="bilinear")
            # Each level of unit length first, so that neither outweighs the other.
            cells = F.normalize(torch.cat([F.normalize(fine, dim=1), F.normalize(coarse, dim=1)], dim=1), dim=1)
        # Without the cells that hold padding.
        height, width = (side // _STRIDE for side in batch.image_sizes[0])
        yield image, cells[0, :, :height, :width].half().numpy()


def _cluster(document: Mapping[str, Any], features: Mapping[int, NDArray[np.float16]]) -> NDArray[np.float32]:
    """Cluster a sample of the cells that no object covers: [REGIONS, C]."""
    random = np.random.default_rng(_SEED)
    objects = _objects_by_image(document)
    chosen = []
    for image in document["images"]:
        cells = features[image["id"]]
        covered = np.zeros((image["height"], image["width"]), np.uint8)
        for entry in objects.get(image["id"], []):
            covered |= decode_rle(to_rle(entry["segmentation"], covered.shape)).astype(np.uint8)
        resized = F.adaptive_avg_pool2d(torch.from_numpy(covered)[None].float(), cells.shape[1:])[0].numpy()
        free = cells[:, resized == 0].T
        chosen.append(random.permutation(free)[:_CELLS_PER_PHOTO])
    points = np.concatenate(chosen).astype(np.float32)
    centres, _ = kmeans2(points, min(REGIONS, len(points)), minit="++", rng=np.random.default_rng(_SEED))
    return centres.astype(np.float32)


def _nearest(cells: NDArray[np.float16], centres: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Find each pixel's nearest centre, distances interpolated between cells: [H, W] uint8."""
    flat = torch.from_numpy(cells.astype(np.float32)).flatten(1).T
    distances: Tensor = torch.cdist(flat, torch.from_numpy(centres)).T.reshape(1, len(centres), *cells.shape[1:])
    return F.interpolate(distances, size=size, mode="bilinear").argmin(dim=1)[0].to(torch.uint8).numpy()
