"""A model of one's own, without a network: finds the bright and the dark part of a photo."""

import torch

from htc_batch import FrameDetections, ImageBatch, PixelFormat


class BrightRegions:
    """Keeps to the protocol of models: name, classes, pixels, infer."""

    name = "bright-regions"
    classes = ("bright", "dark")
    category_ids = (7, 9)  # may be left out
    pixels = PixelFormat(long_side=256, short_side=256, pad_multiple=32)

    def __init__(self, level: float) -> None:
        self.level = level

    def infer(self, batch: ImageBatch) -> list[FrameDetections]:
        """Return one result for each image, in the order of the batch."""
        found = []
        sizes = zip(batch.image_sizes, batch.original_sizes, strict=True)
        for pixels, ((height, width), original_size) in zip(batch.pixels, sizes, strict=True):
            grey = pixels[:, :height, :width].mean(dim=0)  # the padding is cut off
            masks = torch.stack([grey >= self.level, grey < 1 - self.level])
            scores = torch.stack([grey.mean(), 1 - grey.mean()])
            labels = torch.tensor([0, 1], device=grey.device)
            found.append(FrameDetections(None, scores, labels, masks, is_logits=False, original_size=original_size))
        return found


def load(level: float = 0.6) -> BrightRegions:
    """Make the model; the spec's options are keyword arguments."""
    return BrightRegions(level)
