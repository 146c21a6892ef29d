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
        (
            MODELS + "    fallbacks: [smal]",
            "model 'small': fallback 'smal' is no model of this file: there are no others",
        ),
        (MODELS + "    fallbacks: [small]", "'small' stands in its fallbacks twice, or is the model itself"),
        (MODELS + "    balanse: weighted", "did you mean 'balance'"),
        (MODELS + "    balance: random", "'weighted', 'least_busy' or 'fastest'"),
        (MODELS + "    attempts_max: 0", "models.0.attempts_max"),
        (MODELS + "    attempt_timeout_s: -1", "models.0.attempt_timeout_s"),
        (MODELS.replace("model: gemma", "model: gemma, wieght: 2"), "did you mean 'weight'"),
        (MODELS.replace("model: gemma", "model: gemma, weight: -1"), "models.0.upstreams.0.weight"),
        (MODELS.replace("model: gemma", "model: gemma, bulkhead: 0"), "models.0.upstreams.0.bulkhead"),
        (MODELS.replace("model: gemma", "model: gemma, bulkhead: {permits: 1, strategy: threads}"), "for what blocks"),
        (MODELS.replace("model: gemma", "model: gemma, breaker: {failure_rat: 1}"), "did you mean 'failure_rate'"),
    ],
)
def test_a_models_file_that_can_not_be_used_says_why(text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        parse_models(text, "models.yaml")


CHAIN = """
models:
  - name: small
    balance: least_busy
    upstreams:
      - {base_url: "http://a/v1", model: llama, weight: 3, bulkhead: 64}
      - {base_url: "http://b/v1", model: llama, breaker: {failure_rate: 0.3}}
      - {base_url: "http://c/v1", model: llama, weight: 0, name: reserve}
    fallbacks: [large]
    attempts_max: 2
    attempt_timeout_s: 20
  - name: large
    upstreams: [{base_url: "http://a/v1", model: llama}, {base_url: "http://a/v1", model: big}]
"""


def test_a_models_file_says_who_shares_the_calls_and_who_takes_over() -> None:
    file = parse_models(CHAIN, "here")
    small, large = file.models
    assert (small.balance, small.fallbacks, small.attempts_max, small.attempt_timeout_s) == (
        "least_busy",
        ("large",),
        2,
        20.0,
    )
    policies = [upstream.policies for upstream in small.upstreams]
    assert policies[0].bulkhead is not None
    assert policies[0].bulkhead.permits == 64
    assert policies[1].breaker is not None
    assert policies[1].breaker.failure_rate == 0.3
    names = file.upstream_names()
    assert [names[upstream] for upstream in small.upstreams] == ["llama", "llama-2", "reserve"]
    assert [names[upstream] for upstream in large.upstreams] == ["llama", "big"], "one server's model has one name"
    assert parse_models(file.model_dump_json(), "there") == file


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("fallbacks: [large]", "fallbacks: [larg]"), "did you mean 'large'"),
        (("breaker:", "name: reserve, breaker:"), "upstream name 'reserve' stands for two servers"),
        (("weight: 3", "weight: 0"), None),
        (('"http://b/v1", model: llama', '"http://b/v1", weight: 0, model: llama'), None),
    ],
)
def test_a_chain_that_can_not_be_used_says_why(change: tuple[str, str], says: str | None) -> None:
    text = CHAIN.replace(*change)
    if says is None:
        parse_models(text, "here")  # some are in reserve; not all of them
        with pytest.raises(SettingsError, match="every upstream has weight 0"):
            parse_models(
                text.replace("weight: 3", "weight: 0").replace("llama, breaker", "llama, weight: 0, breaker"), "x"
            )
        return
    with pytest.raises(SettingsError, match=says):
        parse_models(text, "here")


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
