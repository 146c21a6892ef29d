from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.money import Price, money, nano_usd
from serve.settings import Settings, SettingsError, parse_models

GOOD = {
    "TENANTRY_NATS_URL": "nats://x",
    "TENANTRY_VALKEY_URL": "redis://x",
    "TENANTRY_VAULT_URL": "redis://y",
    "TENANTRY_MASTER_KEY": "bWFzdGVyIGtleSBvZiB0aGlydHktdHdvIGJ5dGVzISE=",
    "TENANTRY_ADMIN_KEY": "a" * 16,
    "TENANTRY_PEPPER": "p" * 32,
}
MODELS = """
models:
  - name: small
    upstreams: [{base_url: "http://127.0.0.1:8081/v1/", model: gemma, api_key_env: SMALL_KEY}]
    price: {input_usd_per_mtok: "0.10", output_usd_per_mtok: "0.405"}
    max_output_tokens: 64
"""


def test_a_models_file_says_who_serves_what_at_which_price() -> None:
    (model,) = parse_models(MODELS, "here").models
    assert model.upstreams[0].base_url == "http://127.0.0.1:8081/v1"
    assert model.price.cost_nano_usd(3, 2) == 3 * 100 + 2 * 405


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models: [", "not YAML"),
        ("models: [{name: x}]", "models.0.upstreams: Field required"),
        ("model: []", "model: Extra inputs"),
        ("models: [{name: 'a b', upstreams: [{base_url: 'http://x', model: m}]}]", "models.0.name"),
        ("models: [{name: a, upstreams: [{base_url: 'ftp://x', model: m}]}]", "expected http"),
        ("models: [{name: a, upstreams: [{base_url: 'http://u:p@x', model: m}]}]", "api_key_env"),
        ("models: [{name: a, upstreams: []}]", "models.0.upstreams"),
        (MODELS.replace('"0.10"', "0.10"), "write the price as a string"),
        (MODELS.replace("0.405", "0.4051"), "three decimals"),
        (MODELS.replace("0.10", "-1"), "0 or more"),
        (MODELS.replace("0.10", "NaN"), "finite"),
        (MODELS + MODELS.replace("models:\n", ""), "may stand once"),
    ],
)
def test_a_models_file_that_can_not_be_used_says_why(text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        parse_models(text, "models.yaml")


def test_settings_pass_through_the_environment_unchanged() -> None:
    settings = Settings.from_environment({**GOOD, "TENANTRY_MODELS": MODELS, "TENANTRY_POOL_SHARDS": "3"})
    assert settings.pool_shards == 3
    assert Settings.from_environment(settings.to_environment()) == settings


@pytest.mark.parametrize(("name", "value"), [("TENANTRY_PEPPER", "short"), ("TENANTRY_POOL_SHARDS", "0")])
def test_a_bad_setting_is_named_by_its_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings.from_environment({**GOOD, name: value})


def test_a_missing_setting_is_named_by_its_variable() -> None:
    with pytest.raises(SettingsError, match="TENANTRY_NATS_URL"):
        Settings.from_environment({})


@given(st.integers(0, 10**18 - 1))
def test_money_is_exact_in_both_directions(amount: int) -> None:
    text = money(amount)
    assert nano_usd(text) == amount
    assert "E" not in text
    assert Decimal(text) * 10**9 == amount


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "0.0000000001", "NaN", "Infinity", "1e9", "1e999980", "1" * 10, "1.", ".5"]
)
def test_what_is_no_amount_of_money_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="USD"):
        nano_usd(text)


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**6), st.integers(0, 10**6))
def test_cost_is_never_rounded(input_tokens: int, output_tokens: int, price_in: int, price_out: int) -> None:
    price = Price.model_validate(
        {
            "input_usd_per_mtok": f"{Decimal(price_in) / 1000:f}",
            "output_usd_per_mtok": f"{Decimal(price_out) / 1000:f}",
        }
    )
    exact = price.input_usd_per_mtok * input_tokens + price.output_usd_per_mtok * output_tokens
    assert Decimal(price.cost_nano_usd(input_tokens, output_tokens)) == exact * 1000
