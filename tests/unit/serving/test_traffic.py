"""Which variant answers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outcrop.serving.traffic import choose, steps, sticky_point


@given(weights=st.lists(st.floats(0, 100), min_size=1, max_size=6), point=st.floats(0, 1, exclude_max=True))
def test_a_variant_without_weight_is_never_chosen_beside_one_with(weights: list[float], point: float) -> None:
    index = choose(weights, point)

    assert weights[index] > 0 or sum(weights) <= 0


def test_shares_follow_the_weights() -> None:
    found = [choose([3, 0, 1], point / 1000) for point in range(1000)]

    assert (found.count(0), found.count(1), found.count(2)) == (750, 0, 250)


def test_a_key_moves_to_a_variant_whose_weight_is_raised_and_never_back() -> None:
    points = [sticky_point("endpoint", str(key)) for key in range(2000)]
    places = [[choose([100 - share, share], point) for share in range(0, 101, 5)] for point in points]

    assert all(place == sorted(place) for place in places)
    assert 0.45 < sum(place[10] for place in places) / 2000 < 0.55


def test_an_update_ends_with_all_of_the_traffic() -> None:
    assert steps("CANARY", 0.1) == [0.1, 1.0]
    assert steps("LINEAR", 0.25) == [0.25, 0.5, 0.75, 1.0]
    assert steps("LINEAR", 0.5) == [0.5, 1.0]
    assert steps("ALL_AT_ONCE", 1.0) == [1.0]
