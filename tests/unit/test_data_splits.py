"""Splits: by content and seed alone, exact in number, and never with one image on both sides."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from lensdist.data.splits import (
    TEST,
    TRAIN,
    UNDECIDED,
    VAL,
    assign_splits,
    content_digest,
    count_classes,
)


def digests(n: int, salt: int = 0) -> list[bytes]:
    return [hashlib.sha256(f"{salt}:{i}".encode()).digest() for i in range(n)]


def undecided(n: int) -> npt.NDArray[np.uint8]:
    return np.full(n, UNDECIDED, np.uint8)


def test_an_unsplit_set_is_80_10_10_exactly_class_by_class() -> None:
    labels = np.repeat(np.array([0, 1, 2], np.int16), [29449, 30, 105])
    split = assign_splits(digests(len(labels)), labels, 0, undecided(len(labels)))
    for label, tenth in ((0, 2945), (1, 3), (2, 11)):  # 10.5 is rounded half up
        of_class = split[labels == label]
        assert np.sum(of_class == VAL) == np.sum(of_class == TEST) == tenth


def test_a_supplied_test_split_is_kept_and_validation_is_a_tenth_of_the_rest() -> None:
    supplied = undecided(300)
    supplied[200:] = TEST
    labels = np.tile(np.array([0, 1], np.int16), 150)
    split = assign_splits(digests(300), labels, 0, supplied)
    assert (split[200:] == TEST).all()
    for label in (0, 1):
        assert np.bincount(split[:200][labels[:200] == label]).tolist() == [90, 10]


def test_three_supplied_splits_are_kept() -> None:
    supplied = np.repeat(np.array([TRAIN, VAL, TEST], np.uint8), 10)
    split = assign_splits(digests(30), np.zeros(30, np.int16), 0, supplied)
    np.testing.assert_array_equal(split, supplied)


@given(st.integers(1, 60), st.integers(0, 2**40), st.randoms(use_true_random=False), st.data())
def test_the_order_of_files_does_not_matter(n: int, seed: int, random, data) -> None:  # type: ignore[no-untyped-def]
    contents = digests(n)
    labels = np.array(data.draw(st.lists(st.integers(-1, 2), min_size=n, max_size=n)), np.int16)
    split = assign_splits(contents, labels, seed, undecided(n))
    order = list(range(n))
    random.shuffle(order)
    shuffled = assign_splits([contents[i] for i in order], labels[order], seed, undecided(n))
    np.testing.assert_array_equal(shuffled, split[order])


@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(-1, 1)), min_size=1, max_size=80),
    st.integers(0, 10),
    st.data(),
)
def test_equal_content_is_always_in_one_split(rows, seed: int, data) -> None:  # type: ignore[no-untyped-def]
    pool = digests(16)
    contents = [pool[i] for i, _ in rows]
    labels = np.array([label for _, label in rows], np.int16)
    codes = st.sampled_from([UNDECIDED, UNDECIDED, TRAIN, TEST])
    supplied = np.array(
        data.draw(st.lists(codes, min_size=len(rows), max_size=len(rows))), np.uint8
    )
    split = assign_splits(contents, labels, seed, supplied)
    assert set(split.tolist()) <= {TRAIN, VAL, TEST}
    for content in set(contents):
        assert len({split[i] for i, c in enumerate(contents) if c == content}) == 1


@given(st.integers(1, 200), st.integers(0, 5))
def test_the_tenths_are_exact_at_any_size(n: int, seed: int) -> None:
    split = assign_splits(digests(n), np.zeros(n, np.int16), seed, undecided(n))
    expected = max((n + 5) // 10, 1 if n > 2 else 0)
    assert np.bincount(split, minlength=3).tolist() == [n - 2 * expected, expected, expected]


def test_another_seed_gives_another_split() -> None:
    labels = np.zeros(1000, np.int16)
    first, second = (assign_splits(digests(1000), labels, s, undecided(1000)) for s in (0, 1))
    assert np.mean(first[first == TEST] == second[first == TEST]) < 0.3


def test_content_is_float32_pixels_and_shape() -> None:
    image = np.random.default_rng(0).random((1, 4, 6))
    same = content_digest(image.astype(">f4"))
    assert same == content_digest(image) == content_digest(np.asfortranarray(image))
    assert same != content_digest(image.reshape(1, 6, 4))
    assert same != content_digest(image, image)
    assert same != content_digest(image + 1e-6)
    other = np.array(image)
    other[0, 0, 0] += 1
    assert content_digest(image, image) != content_digest(image, other)


def test_the_first_tenth_by_the_hash_of_seed_and_content_is_test_and_the_next_validation() -> None:
    """Another order would give the sets of earlier versions other splits when packed again."""
    contents = digests(100)
    split = assign_splits(contents, np.zeros(100, np.int16), 7, undecided(100))
    order = sorted(range(100), key=lambda i: hashlib.sha256(b"7:" + contents[i]).digest())
    assert split[order].tolist() == [TEST] * 10 + [VAL] * 10 + [TRAIN] * 80


def test_what_was_supplied_twice_is_where_it_can_do_no_harm() -> None:
    """An image of train that is in test as well would be learned by heart."""
    one, two, three = digests(3)
    contents = [one, one, two, two, two, three]
    supplied = np.array([TRAIN, TEST, TEST, VAL, UNDECIDED, TRAIN], np.uint8)
    for order in (slice(None), slice(None, None, -1)):
        split = assign_splits(contents[order], np.zeros(6, np.int16), 0, supplied[order])
        assert split[order].tolist() == [TEST, TEST, TEST, TEST, TEST, TRAIN]


def test_an_image_under_two_labels_counts_under_the_lower() -> None:
    contents = digests(100)
    labels = np.repeat(np.array([0, 1], np.int16), [50, 100])
    split = assign_splits(contents[:50] + contents, labels, 0, undecided(150))
    np.testing.assert_array_equal(split[:50], split[50:100])
    for part in (split[:50], split[100:]):
        assert np.bincount(part, minlength=3).tolist() == [40, 5, 5]


def test_images_without_a_class_are_counted_apart() -> None:
    labels, split = np.array([0, 1, -1, -1]), np.array([TRAIN, TRAIN, TRAIN, TEST])
    found = count_classes(labels, split, ["a", "b"])
    assert found["train"] == {"a": 1, "b": 1, "unlabelled": 1}
    assert found["test"] == {"a": 0, "b": 0, "unlabelled": 1}
    assert set(count_classes(labels[:2], split[:2], ["a", "b"])["val"]) == {"a", "b"}
    assert count_classes(labels, split, [])["train"] == {"unlabelled": 1}
