from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.money import Price, money, nano_usd
from serve.settings import Settings, SettingsError, parse_models, tool_configs

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
        (MODELS.replace("0.10", "-1"), "a price is 0 to"),
        (MODELS.replace("0.10", "NaN"), "finite"),
        (MODELS + MODELS.replace("models:\n", ""), "may stand once"),
    ],
)
def test_a_models_file_that_can_not_be_used_says_why(text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        parse_models(text, "models.yaml")


TOOLS = """
tools:
  - {name: payments, adapter: payment, api_key_env: PAYMENTS_KEY, bulkhead: 5, overrides: {acme: {timeout_s: 3}}}
  - {name: weather, adapter: "tests.kit.fakes:MockTool"}
"""


def test_a_models_file_says_which_tools_there_are() -> None:
    payments, weather = tool_configs(parse_models(TOOLS, "here"))
    assert payments.bulkhead is not None
    assert (payments.bulkhead.permits, payments.timeout_s, payments.for_tenant("acme").timeout_s) == (5, 10, 3)
    assert weather.name == "weather"


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("bulkhead: 5", "bulkhed: 5", "unknown setting 'bulkhed', did you mean 'bulkhead'"),
        ("timeout_s: 3", "timeout: 3", "overrides of 'acme'.*did you mean 'timeout_s'"),
        ("timeout_s: 3", "adapter: http", "the same for all tenants"),
        ("api_key_env: PAYMENTS_KEY, ", "", "api_key_env: Field required"),
        ("adapter: payment,", "adapter: paymnt,", "there are email, http, model, payment, and module:Class"),
        ("adapter: payment,", "", "adapter: there are"),
        ("tests.kit.fakes:MockTool", "tests.kit.fakes:Nothing", "PYTHONPATH"),
        ("tests.kit.fakes:MockTool", "no_such_module:Tool", "PYTHONPATH"),
        ("tests.kit.fakes:MockTool", "pathlib:Path", "not a subclass"),
        ("name: weather", "name: payments", "may stand once"),
        ("name: weather", "name: 'a b'", "name"),
        ("bulkhead: 5", "cost_usd: much", "amount of USD"),
    ],
)
def test_tools_that_can_not_be_used_say_why(before: str, after: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        tool_configs(parse_models(TOOLS.replace(before, after), "models.yaml"))


def test_a_secret_in_the_wrong_place_is_not_repeated() -> None:
    text = TOOLS.replace("api_key_env: PAYMENTS_KEY", "api_key_env: [sk_live_canary]")
    with pytest.raises(SettingsError) as refusal:
        tool_configs(parse_models(text, "models.yaml"))
    assert "canary" not in str(refusal.value)


def test_settings_pass_through_the_environment_unchanged() -> None:
    settings = Settings.from_environment({**GOOD, "TENANTRY_MODELS": MODELS + TOOLS, "TENANTRY_POOL_SHARDS": "3"})
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
