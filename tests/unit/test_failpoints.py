import ast
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from events import failpoints
from events.failpoints import POINTS, FailpointSpecError, InjectedError, Rule, arm, failpoint, parse, passes
from serve.settings import Settings, SettingsError
from tests.unit.test_settings import GOOD

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    arm("")


def fired(count: int, name: str = "append.before_fcall") -> list[int]:
    """Which of ``count`` passes raised, counted from one."""
    found = []
    for number in range(1, count + 1):
        try:
            failpoint(name)
        except InjectedError:
            found.append(number)
    return found


def test_every_name_in_the_list_is_a_place_in_the_code_and_the_other_way_round() -> None:
    placed: Counter[str] = Counter()
    for package in ("events", "actors", "projections", "serve"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "failpoint":
                    name, *_subject = node.args
                    text = ast.literal_eval(name)
                    assert isinstance(text, str), (path, node.lineno)
                    placed[text] += 1
    assert placed == Counter(dict.fromkeys(POINTS, 1))


def test_a_rule_may_be_about_one_tenant() -> None:
    arm("append.before_fcall[acme]=raise@1")
    failpoint("append.before_fcall")
    failpoint("append.before_fcall", "globex")
    with pytest.raises(InjectedError):
        failpoint("append.before_fcall", "acme")


def test_a_failpoint_that_nobody_armed_does_nothing() -> None:
    assert fired(100) == []
    arm("snap.mid_write=raise")
    assert fired(100) == []


@pytest.mark.parametrize(
    ("rule", "passes_that_fire"),
    [("raise", [1, 2, 3, 4, 5]), ("raise@3", [3]), ("raise*2", [1, 2]), ("raise@9", [])],
)
def test_a_rule_says_at_which_pass_it_happens(rule: str, passes_that_fire: list[int]) -> None:
    arm(f"append.before_fcall={rule}")
    assert fired(5) == passes_that_fire
    assert passes() == {"append.before_fcall": 5}


def test_the_same_seed_throws_the_same_dice() -> None:
    runs = []
    for seed in (1, 1, 2):
        arm("append.before_fcall=raise%0.2", seed)
        runs.append(fired(1_000))
    assert runs[0] == runs[1] != runs[2]
    assert 120 < len(runs[0]) < 280


def test_a_delay_lasts() -> None:
    (rule,) = parse("actor.before_decode=delay:0.25%0.5*3")
    assert rule == Rule("actor.before_decode", "delay", seconds=0.25, probability=0.5, times=3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("append.befor_fcall=crash", "did you mean 'append.before_fcall'?"),
        ("nonsense=crash", "there are: gw.after_reserve"),
        ("append.before_fcall", "expected NAME="),
        ("append.before_fcall=explode", "expected NAME="),
        ("append.before_fcall=crash@0", "expected NAME="),
        ("append.before_fcall=crash%0", "a probability is above 0"),
        ("append.before_fcall=delay:1.2.3", "not a number"),
        ("snap.mid_write=crash;snap.mid_write=pause", "one rule"),
    ],
)
def test_a_rule_that_can_not_be_meant_is_refused_with_the_way_out(text: str, says: str) -> None:
    with pytest.raises(FailpointSpecError) as refusal:
        arm(text)
    assert says in str(refusal.value)
    with pytest.raises(SettingsError, match="TENANTRY_FAILPOINTS"):
        Settings.from_environment({**GOOD, "TENANTRY_FAILPOINTS": text})


def test_a_crash_is_a_kill_and_leaves_a_trace() -> None:
    program = (
        "from events.failpoints import *; arm('snap.mid_write=crash@2'); [failpoint('snap.mid_write') for _ in 'ab']"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -9
    assert done.stderr.startswith("failpoint.fired name=snap.mid_write action=crash pass=2 pid=")


def test_a_pause_stops_the_process_until_it_is_told_to_go_on() -> None:
    program = "from events.failpoints import *; arm('snap.mid_write=pause'); failpoint('snap.mid_write')"
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        process.send_signal(18)  # SIGCONT
        assert process.wait(20) == 0


def test_settings_hand_failpoints_on_to_every_process() -> None:
    settings = Settings.from_environment({**GOOD, "TENANTRY_FAILPOINTS": "snap.mid_write=crash"})
    assert Settings.from_environment(settings.to_environment()) == settings
    assert failpoints.parse(settings.failpoints)[0].action == "crash"
