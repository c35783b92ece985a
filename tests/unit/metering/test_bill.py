"""Money: the published arithmetic, a second bill in plain loops, sums that hold however they are grouped."""

from __future__ import annotations

import random
from datetime import date
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import pytest

from outcrop.errors import BadSetting
from outcrop.metering.bill import COSTS, ModelNote, Terms, bill, cents, per_million, saved_by_warmth_s
from outcrop.metering.price_book import OWN_COPY_HOUR, PriceBook
from outcrop.metering.usage import HOUR_MS, Key, Usage

ACCOUNT = "000000000000"
TODAY, EARLIER = date(2026, 10, 1), date(2025, 6, 1)
BOOK = PriceBook.load()
MODELS = {
    "m1": ModelNote("reviewer", "Qwen2ForCausalLM", {"team": "apex"}),
    "m2": ModelNote("writer", "GptOssForCausalLM"),
}


def terms(as_of: date = TODAY, book: PriceBook = BOOK) -> Terms:
    return Terms(book=book, region="us-east-1", as_of=as_of)


def own(usd: str = "1.20") -> PriceBook:
    return BOOK.with_price(OWN_COPY_HOUR, Decimal(usd), region="us-east-1", today=EARLIER)


def random_rows(seed: int) -> dict[Key, Usage]:
    draw, rows = random.Random(seed), {}
    for hour in range(6):
        for model in ("m1", "m2", "gone"):
            if draw.random() < 0.2:
                continue
            rows[Key(hour * HOUR_MS, ACCOUNT, model)] = Usage(
                window_units=draw.randrange(20),
                idle_ms=draw.randrange(HOUR_MS),
                busy_ms=draw.randrange(HOUR_MS),
                starting_ms=draw.randrange(9999),
                stored_unit_s=draw.randrange(3600),
                peak_copies=draw.randrange(4),
            )
            for who in ("arn:a", "arn:b", "arn:c"):
                if draw.random() < 0.5:
                    rows[Key(hour * HOUR_MS, ACCOUNT, model, who)] = Usage(
                        requests=draw.randrange(1, 50), run_ms=draw.randrange(1, 90_000), tokens_in=draw.randrange(9999)
                    )
    return rows


def test_one_window_of_a_copy_of_two_units_costs_what_the_pricing_page_says() -> None:
    rows = {Key(0, ACCOUNT, "m1"): Usage(windows=1, window_units=2)}

    (line,) = bill(rows, MODELS, terms(EARLIER), by="model")

    assert float(line.usd["cmi_usd"]) == 0.785  # 2 units x 0.0785 x 5, not / 60


def test_a_model_kept_always_warm_for_a_month_costs_what_was_published() -> None:
    month = {Key(0, ACCOUNT, "m1"): Usage(window_units=730 * 12, stored_unit_s=730 * 3600, peak_copies=1)}

    at = {day: bill(month, MODELS, terms(day), by="model")[0].usd for day in (EARLIER, TODAY)}

    assert round(at[EARLIER]["cmi_usd"]) == 3438
    assert round(at[TODAY]["cmi_usd"]) == 2504
    assert float(at[TODAY]["cmi_storage_usd"]) == 1.95


def test_second_generation_units_have_their_own_price() -> None:
    rows = {Key(0, ACCOUNT, "m2"): Usage(window_units=1)}

    assert float(bill(rows, MODELS, terms(), by="model")[0].usd["cmi_usd"]) == 0.7165


@pytest.mark.parametrize("seed", range(20))
def test_the_bill_equals_a_naive_one_to_the_cent_however_it_is_grouped(seed: int) -> None:
    rows = random_rows(seed)
    # Plain loops over the same rows, in decimals.
    naive = dict.fromkeys(COSTS, Decimal(0))
    for key, usage in rows.items():
        unit = Decimal("0.1433") if key.model_id == "m2" else Decimal("0.05718")
        naive["cmi_usd"] += usage.window_units * unit * 5
        naive["cmi_storage_usd"] += Decimal(usage.stored_unit_s) * Decimal("1.95") / (730 * 3600)
        naive["own_allocated_usd"] += (
            Decimal(usage.idle_ms + usage.busy_ms + usage.starting_ms) * Decimal("1.20") / HOUR_MS
        )
        naive["own_used_usd"] += Decimal(usage.busy_ms) * Decimal("1.20") / HOUR_MS
        naive["keep_warm_usd"] += Decimal(usage.idle_ms) * Decimal("1.20") / HOUR_MS
    for model in ("m1", "m2", "gone"):
        hours = [key.hour_ms for key in rows if key.model_id == model]
        peak = max((usage.peak_copies for key, usage in rows.items() if key.model_id == model), default=0)
        last = max(key.hour_ms for key in rows)
        naive["sagemaker_usd"] += peak * Decimal("2.61") * ((last - min(hours)) // HOUR_MS + 1)

    for by in ("model", "principal", "hour", "day", "total", "tag:team"):
        lines = bill(rows, MODELS, terms(book=own()), by=by)
        for cost in COSTS:
            wanted = naive[cost].quantize(Decimal("0.01"), ROUND_HALF_EVEN)
            assert sum(cents(lines, cost).values()) == wanted, (by, cost)
        assert sum(line.counts["requests"] for line in lines) == sum(usage.requests for usage in rows.values())


def test_what_copies_cost_is_divided_by_the_time_that_requests_ran() -> None:
    rows = {
        Key(0, ACCOUNT, "m1"): Usage(window_units=8),
        Key(0, ACCOUNT, "m1", "arn:a"): Usage(run_ms=3000),
        Key(0, ACCOUNT, "m1", "arn:b"): Usage(run_ms=1000),
        Key(HOUR_MS, ACCOUNT, "m1"): Usage(window_units=4),  # nobody asked in this hour
        Key(0, ACCOUNT, "m2"): Usage(window_units=1),  # nobody ever asked this one
    }

    found = {line.group: line.counts["window_units"] for line in bill(rows, MODELS, terms(), by="principal")}

    assert found == {"arn:a": 9, "arn:b": 3, "(nobody)": 1}


def test_usage_cost_per_token_is_below_allocation_by_the_time_that_copies_rested() -> None:
    rows = {
        Key(0, ACCOUNT, "m1"): Usage(busy_ms=HOUR_MS // 4, idle_ms=3 * HOUR_MS // 4),
        Key(0, ACCOUNT, "m1", "arn:a"): Usage(tokens_in=1_500_000, tokens_out=500_000, run_ms=1),
    }

    (line,) = bill(rows, MODELS, terms(book=own()), by="model")

    assert float(per_million(line, "own_allocated_usd") or 0) == 0.6
    assert float(per_million(line, "own_used_usd") or 0) == 0.15
    assert float(line.usd["keep_warm_usd"]) == pytest.approx(0.9)


def test_kept_copies_spared_the_mean_cold_start_of_each_request_at_rest() -> None:
    rows = {Key(0, ACCOUNT, "m1"): Usage(cold_starts=2, start_spawn_ms=1000, start_load_ms=5000, warm_hits=7)}

    (line,) = bill(rows, MODELS, terms(), by="model")

    assert saved_by_warmth_s(line) == 21


def test_own_hardware_has_no_price_until_someone_enters_one() -> None:
    rows = {Key(0, ACCOUNT, "m1"): Usage(busy_ms=HOUR_MS)}

    (line,) = bill(rows, MODELS, terms(), by="model")

    assert per_million(line, "own_allocated_usd") is None
    assert set(cents([line], "own_allocated_usd").values()) == {0}
    assert "own_allocated_usd" not in line.usd  # also not because somebody asked for it


def test_the_newest_price_known_on_a_day_is_taken_and_every_one_says_whence_it_is() -> None:
    assert BOOK.need("cmu-v1-minute", region="us-east-1", as_of=EARLIER).usd == Decimal("0.0785")
    assert BOOK.need("cmu-v1-minute", region="us-east-1", as_of=TODAY).usd == Decimal("0.05718")
    assert all(price.source and price.date for price in BOOK.all())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[price]\n", "not valid TOML"),
        ('[[price]]\nitem = "x"\nregion = "r"\nusd = "1"\ndate = 2026-01-01\n', "source missing"),
        ('[[price]]\nitem = "x"\nregion = "r"\nusd = "one"\ndate = 2026-01-01\nsource = "s"\n', "is no number"),
        ('[[price]]\nitem = "x"\nregion = "r"\nusd = "-1"\ndate = 2026-01-01\nsource = "s"\n', "at least 0"),
        ('[[price]]\nitem = "x"\nregion = "r"\nusd = "1"\ndate = "2026"\nsource = "s"\n', "is no date"),
        ('[[price]]\nitem = "x"\nregion = "r"\nusd = "1"\ndate = 2026-01-01T08:00:00Z\nsource = "s"\n', "is no date"),
        ('[[price]]\nitem = 3\nregion = "r"\nusd = "1"\ndate = 2026-01-01\nsource = "s"\n', "item = 3 must be a text"),
        ('[[price]]\nitem = "x"\nregion = "r"\nusd = true\ndate = 2026-01-01\nsource = "s"\n', "is no number"),
        ('[[price]]\nitem = "x"\nregion = "r"\nusd = "1"\ndate = 2026-01-01\nsource = "s"\n' * 2, "2 prices of x in r"),
        ('[[prices]]\nitem = "x"\n', "it has prices"),
        ("price = [1]\n", "is no table"),
        ("", "it has nothing"),
    ],
)
def test_a_wrong_price_book_is_refused_by_file_entry_and_field(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)

    with pytest.raises(BadSetting, match=said):
        PriceBook.load(path)


def test_a_price_that_no_book_has_is_named() -> None:
    with pytest.raises(BadSetting, match=r"no price of ml\.x9"):
        BOOK.need("ml.x9", region="us-east-1", as_of=TODAY)
