"""The page of pictures shows a few fixed images with what is annotated and what was found."""

import numpy as np
import torch
from PIL import Image

from htc_model.masks.rle import encode_bitmap
from htc_model.structures import Detections
from htc_model.training.coco_reader import read_annotations
from htc_model.training.pictures import PicturePage
from tests.support.builders.training_data import SIDE, draw_image, small_document


def detections(*, score: float, has_masks: bool = True) -> Detections:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:20, :20] = 1
    return Detections(
        torch.tensor([[0.0, 0.0, 20.0, 20.0]]),
        torch.tensor([score]),
        torch.tensor([1]),
        [encode_bitmap(mask)] if has_masks else None,
    )


def drawn(path, score: float, **kinds: bool) -> np.ndarray:
    page = PicturePage(read_annotations(small_document(5)), 2)
    for number in range(5):
        page.add(number, draw_image(f"{number}.png"), detections(score=score, **kinds))
    assert page.write(path, "epoch 3")
    return np.asarray(Image.open(path)).astype(int)


def test_weak_detections_are_not_drawn_and_the_annotated_side_does_not_change(tmp_path) -> None:
    strong, weak = drawn(tmp_path / "a" / "strong.jpg", 0.9), drawn(tmp_path / "weak.jpg", 0.1)
    middle = strong.shape[1] // 2
    # JPEG's blocks reach a few pixels across.
    assert np.abs(strong - weak)[:, : middle - 16].max() < 8
    assert np.abs(strong - weak)[:, middle + 16 :].max() > 80
    assert np.abs(drawn(tmp_path / "boxes.jpg", 0.9, has_masks=False) - strong).max() > 20


def test_no_images_are_no_page(tmp_path) -> None:
    page = PicturePage(read_annotations(small_document(2)), 0)
    page.add(0, draw_image("0.png"), detections(score=0.9))
    assert not page.write(tmp_path / "none.jpg", "epoch 1")
    assert not (tmp_path / "none.jpg").exists()
