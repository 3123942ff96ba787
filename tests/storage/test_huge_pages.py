"""Tensors in huge pages share memory, but no numbers, and give their pages back."""

from __future__ import annotations

import torch

from rwkv_engine.storage import huge_pages


def test_tensors_do_not_overlap_and_outlive_each_other():
    tensors = [huge_pages.empty((n, 33), torch.float32) for n in range(1, 40)]
    for i, tensor in enumerate(tensors):
        tensor.fill_(i)
    views = [tensor[0] for tensor in tensors]
    del tensor, tensors
    later = huge_pages.empty((1000, 33), torch.float32).fill_(-1)
    assert all((view == i).all() for i, view in enumerate(views))
    assert all(view.data_ptr() % huge_pages.ALIGNMENT == 0 for view in views)
    assert (later == -1).all()


def test_a_region_begins_again_when_it_holds_no_tensor():
    region = huge_pages._Region(1 << 20)
    first = region.take((1 << 17,), torch.float32).fill_(1)
    address = first.data_ptr()
    view = first[5:]
    del first
    assert region.take((1 << 18,), torch.float32) is None, "the view still holds its memory"
    del view
    again = region.take((1 << 18,), torch.float32)
    assert again.data_ptr() == address
    assert (again == 0).all(), "its pages were given back"


def test_no_bytes_and_other_devices_are_as_torch_has_them():
    assert huge_pages.empty((0, 3), torch.int8).shape == (0, 3)
    assert huge_pages.empty((2, 3), torch.int8, "meta").device.type == "meta"
