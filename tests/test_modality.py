"""Conversion of other systems' codes of the modalities."""

import numpy as np
import pytest
import torch

import vireid


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float64, torch.bfloat16], ids=str)
def test_a_tensor_is_answered_with_a_tensor(dtype, device):
    given = torch.tensor([1, 2, 2, 1], device=device).to(dtype)
    out = vireid.modality(given)
    assert out.dtype == torch.int64
    assert out.device == given.device
    assert out.tolist() == [0, 1, 1, 0]
    assert given.tolist() == [1, 2, 2, 1]


@pytest.mark.parametrize(
    ("codes", "options"),
    [
        (np.array([[1.0], [2.0]]), {}),  # as scipy.io.loadmat answers
        (np.array([["rgb"], ["ir"]]), {"visible": "rgb", "infrared": "ir"}),
        (np.array([[0], [1]], np.uint8), {"visible": 0, "infrared": 1}),
        (np.array([[True], [False]]), {"visible": True, "infrared": False}),
    ],
)
def test_an_array_is_answered_with_an_array(codes, options):
    out = vireid.modality(codes, **options)
    assert isinstance(out, np.ndarray)
    assert out.dtype == np.int64
    assert out.tolist() == [[0], [1]]


def test_a_sequence_is_answered_with_a_list():
    assert vireid.modality(("ir", "rgb"), visible="rgb", infrared="ir") == [1, 0]
    assert vireid.modality(range(1, 7), visible=np.array([1, 2, 4, 5]), infrared=(3, 6)) == [0, 0, 1, 0, 0, 1]
    assert vireid.modality([]) == []


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_codes_of_neither_modality_are_listed(kind):
    with pytest.raises(ValueError, match=r"x must hold visible=1 or infrared=2 only, got 7, 0 as well"):
        vireid.modality(kind([1, 7, 2, 0, 7]))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("rgb",), TypeError, r"x must be a torch\.Tensor, a numpy\.ndarray or a sequence of codes, got str"),
        ((3,), TypeError, "x must be .*, got int"),
        ((torch.ones(2).to_sparse(),), TypeError, "x must be dense"),
        ((torch.ones(2, device="meta"),), TypeError, "x must hold values"),
        (([1, 2], 1, 1), ValueError, "visible and infrared must be different codes, got 1 and 1"),
        (([1, 2], (1, 2), (2, 3)), ValueError, "visible and infrared must be different codes"),
        (([1, 2], None), TypeError, "visible must be a number, a str or several of them, got None"),
        (([1, 2], 1, len), TypeError, "infrared must be a number, a str or several of them"),
        (([1, 2], 1, float("nan")), ValueError, "x must hold visible=1 or infrared=nan only, got 2 as well"),
        ((["1", "2"],), ValueError, "only, got '1', '2' as well"),
    ],
)
def test_bad_arguments_are_named(arguments, error, text):
    with pytest.raises(error, match=text):
        vireid.modality(*arguments)
