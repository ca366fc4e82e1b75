"""Axion files: everything that people's NumPy wrote is read, without `np.load`'s pickle."""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lensdist.data.reading.object_arrays import parse_axion, save_axion
from lensdist.data.reading.raw import BadFile


def pair(image: Any, mass: Any) -> np.ndarray[Any, Any]:
    out = np.empty(2, dtype=object)
    out[0], out[1] = image, mass
    return out


IMAGE = np.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_every_protocol_numpy_has_used(protocol: int) -> None:
    image, mass = parse_axion(pickle.dumps(pair(IMAGE, 3e-23), protocol=protocol))
    np.testing.assert_array_equal(image, IMAGE)
    assert mass == 3e-23


@pytest.mark.parametrize("protocol", [2, 3])
def test_reads_the_module_names_of_numpy_1(protocol: int) -> None:
    data = pickle.dumps(pair(IMAGE, np.float64(3e-23)), protocol=protocol)
    old = data.replace(b"numpy._core.", b"numpy.core.")
    assert old != data
    assert parse_axion(old)[1] == 3e-23


@pytest.mark.parametrize(
    "array",
    [
        IMAGE.astype(">f4"),
        np.asfortranarray(IMAGE),
        IMAGE.astype(np.float16)[None],
        IMAGE.astype(np.uint16),
        IMAGE[::2],
    ],
)
def test_keeps_shape_order_and_byte_order(array: Any) -> None:
    np.testing.assert_array_equal(parse_axion(pickle.dumps(pair(array, 1e-23)))[0], array)


@pytest.mark.parametrize(
    "mass", [np.float64(1e-23), np.float32(1e-23), np.array(1e-23), np.array([1e-23])]
)
def test_reads_a_mass_in_any_numpy_form(mass: Any) -> None:
    assert parse_axion(pickle.dumps(pair(IMAGE, mass)))[1] == pytest.approx(1e-23)


def test_a_missing_mass_is_nan() -> None:
    assert math.isnan(parse_axion(pickle.dumps(pair(IMAGE, None)))[1])


@pytest.mark.parametrize("mass", [-1e-23, 0.0, math.inf, "1e-23", True, np.arange(2.0), 1j])
def test_what_is_no_mass_is_refused(mass: Any) -> None:
    with pytest.raises(BadFile):
        parse_axion(pickle.dumps(pair(IMAGE, mass)))


def test_other_object_arrays_are_refused() -> None:
    for shape in ((1,), (3,), (2, 1)):
        with pytest.raises(BadFile, match=r"\(2,\)"):
            parse_axion(pickle.dumps(np.full(shape, 1.0, dtype=object)))


def test_save_axion_writes_what_numpy_reads(tmp_path: Path) -> None:
    save_axion(tmp_path / "axion_sim_1.npy", IMAGE, 2e-24)
    data = (tmp_path / "axion_sim_1.npy").read_bytes()
    loaded = np.load(io.BytesIO(data), allow_pickle=True)  # our own bytes, so safe here
    assert loaded.shape == (2,)
    np.testing.assert_array_equal(loaded[0], IMAGE)
    assert loaded[1] == 2e-24
