"""The openpi wire: sound, lying, slow and dead servers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from evaluation_samples import TASK, Seen, run
from websockets.proxy import get_proxy
from websockets.uri import parse_uri

from diffrl.base.errors import UserError
from diffrl.evaluation import openpi
from diffrl.evaluation.policies import open_policy
from diffrl.evaluation.protocol import Trial
from diffrl.evaluation.stage import plan


def test_messages_have_the_bytes_of_openpi_s_own_client():
    message = {
        "observation/state": np.arange(3, dtype=np.float32),
        "prompt": "go",
        "n": np.float64(2.5),
        "flag": True,
    }
    golden = (  # openpi_client 0.1.2, msgpack_numpy.Packer().pack
        "84b16f62736572766174696f6e2f737461746584c40b5f5f6e6461727261795f5fc3c40464617461c40c0000"
        "00000000803f00000040c4056474797065a33c6634c40573686170659103a670726f6d7074a2676fa16ecb40"
        "04000000000000a4666c6167c3"
    )
    assert openpi.pack(message).hex() == golden
    again = openpi.unpack(bytes.fromhex(golden))
    assert np.array_equal(again["observation/state"], message["observation/state"])
    assert again["n"] == 2.5


def test_an_array_that_contradicts_itself_is_refused():
    lie = {b"__ndarray__": True, b"data": b"\x00" * 8, b"dtype": "<f8", b"shape": [7]}
    with pytest.raises(ValueError, match="reshape"):
        openpi.unpack(openpi.pack({"actions": lie}))
    with pytest.raises(ValueError, match="cannot be sent"):
        openpi.pack({"x": np.array([object()])})


def ask(policy, trials: list[Trial]) -> np.ndarray:
    for trial in trials:
        policy.begin(trial, "pick up the alphabet soup")
    images = np.zeros((len(trials), 2, 256, 256, 3), np.uint8)
    return policy.act(Seen(len(trials)), images, trials)


def test_a_sound_server_s_actions_are_executed(serve, tmp_path):
    recorded = np.random.default_rng(0).uniform(-1, 1, (40, 7))
    np.save(tmp_path / "actions.npy", recorded)
    policy = open_policy(f"openpi:{serve('replay', str(tmp_path / 'actions.npy'))}?model=replay")
    trial = Trial(TASK, "official/0", 0)
    assert np.array_equal(ask(policy, [trial])[0], recorded[:5])
    assert np.array_equal(ask(policy, [trial])[0], recorded[5:10])
    assert not policy.failures
    assert policy.metadata == {"robot": "test"}


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("nan", "not finite"),
        ("shape", r"shape \(10, 6\)"),
        ("text", "out of memory"),
        ("garbage", "cannot be used"),
        ("silent", "within 0.5 s"),
        ("mute", "within 0.5 s"),
        ("frozen", "within 0.5 s"),
        ("liar", "greeting"),
    ],
)
def test_a_lying_or_slow_server_gives_errors_that_name_it_and_no_hang(serve, behaviour, message):
    address = serve(behaviour)
    policy = open_policy(f"openpi:{address}?model=lies&timeout=0.5")
    policy.sent_size = 2048 if behaviour == "frozen" else 224  # more than the wire itself holds
    trials = [Trial(TASK, f"official/{i}", 0) for i in range(6)]
    actions = ask(policy, trials)
    assert actions.shape == (6, 5, 7)
    assert set(policy.failures) == set(trials)
    assert address in policy.failures[trials[0]]
    assert re.search(message, policy.failures[trials[0]])
    assert "not asked again after 3 failures" in policy.failures[trials[-1]]


def test_a_server_s_model_has_a_name_by_which_its_trials_are_kept():
    with pytest.raises(UserError, match=r"openpi:ws://127\.0\.0\.1:9\?model=<name>"):
        open_policy("openpi:ws://127.0.0.1:9")
    one, two = (open_policy(f"openpi:ws://127.0.0.1:9?model={name}") for name in ("one", "two"))
    assert one.fingerprint != two.fingerprint
    assert two.fingerprint == open_policy("openpi:ws://127.0.0.1:10?model=two").fingerprint


@pytest.mark.parametrize("option", ["timeout", "replan", "start"])
@pytest.mark.parametrize("value", ["inf", "nan", "-inf", "1e20", "0", "-1", "soon", ""])
def test_a_wait_or_a_number_of_steps_without_end_is_refused_by_name(option, value):
    name = "openpi:ws://127.0.0.1:9?model=m"
    if option == "start":
        name = "lerobot:python?checkpoint=far/away"
    with pytest.raises(UserError, match=f"^{option} is '{value}': give a"):
        open_policy(f"{name}&{option}={value}")


def test_a_server_that_is_not_there_gives_errors_and_advice():
    policy = open_policy("openpi:ws://127.0.0.1:9?model=none&timeout=2")
    trial = Trial(TASK, "official/0", 0)
    ask(policy, [trial])
    assert "start it, or correct host and port" in policy.failures[trial]


PROXIES = ("http_proxy", "https_proxy", "ws_proxy", "wss_proxy", "socks_proxy", "no_proxy")


@pytest.fixture
def no_proxies(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_a_server_on_this_machine_is_asked_past_any_proxy(serve, tmp_path, monkeypatch, no_proxies):
    for name in PROXIES[:-1]:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    np.save(tmp_path / "actions.npy", np.zeros((40, 7)))
    address = serve("replay", str(tmp_path / "actions.npy"))
    for host in ("127.0.0.1", "localhost", "0.0.0.0"):
        policy = open_policy(f"openpi:{address.replace('127.0.0.1', host)}?model=near")
        ask(policy, [Trial(TASK, "official/0", 0)])
        assert not policy.failures


def test_a_proxy_that_fails_is_named_without_its_password(monkeypatch, no_proxies):
    monkeypatch.setenv("https_proxy", "http://me:secret@127.0.0.1:9")
    policy = open_policy("openpi:ws://policy.invalid:8000?model=far&timeout=2")
    trial = Trial(TASK, "official/0", 0)
    ask(policy, [trial])
    told = policy.failures[trial]
    assert "through the proxy http://127.0.0.1:9," in told
    assert "no_proxy=policy.invalid" in told
    assert "secret" not in told


def test_a_proxy_that_needs_a_package_is_told(monkeypatch, no_proxies):
    monkeypatch.setitem(sys.modules, "python_socks", None)
    monkeypatch.setitem(sys.modules, "python_socks.sync", None)
    monkeypatch.setenv("socks_proxy", "http://127.0.0.1:9")
    policy = open_policy("openpi:ws://policy.invalid:8000?model=far&timeout=2")
    trial = Trial(TASK, "official/0", 0)
    ask(policy, [trial])
    assert "python-socks" in policy.failures[trial]
    assert "socks5h://127.0.0.1:9" in policy.failures[trial]


@pytest.mark.parametrize(
    ("address", "variables", "proxy"),
    [
        ("ws://host:80", {}, None),
        ("ws://host:80", {"http_proxy": "http://a:1"}, "http://a:1"),
        ("wss://host", {"http_proxy": "http://a:1"}, None),
        ("wss://host", {"https_proxy": "http://a:1", "http_proxy": "http://b:1"}, "http://a:1"),
        ("ws://host", {"https_proxy": "http://a:1", "http_proxy": "http://b:1"}, "http://a:1"),
        ("ws://host", {"socks_proxy": "http://a:1"}, "socks5h://a:1"),
        ("ws://host:80", {"http_proxy": "http://a:1", "no_proxy": "host"}, None),
        ("ws://sub.localhost:80", {"http_proxy": "http://a:1"}, None),
        ("ws://[::1]:80", {"http_proxy": "http://a:1"}, None),
        ("ws://127.0.0.9", {"http_proxy": "http://a:1"}, None),
        ("ws://host:port", {"http_proxy": "http://a:1"}, None),
    ],
)
def test_the_proxy_of_an_address_is_the_one_that_websockets_would_take(
    monkeypatch, no_proxies, address, variables, proxy
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert openpi.proxy_for(address) == proxy
    if re.fullmatch(r"wss?://host(:\d+)?", address):  # of another machine: the oracle
        assert get_proxy(parse_uri(address)) == proxy


def test_a_server_that_dies_costs_only_the_trials_that_needed_it(serve):
    policy = open_policy(f"openpi:{serve('dies')}?model=dies&timeout=2")
    trials = [Trial(TASK, f"official/{i}", 0) for i in range(3)]
    ask(policy, trials)
    assert list(policy.failures) == trials[2:]
    assert "broke the connection" in policy.failures[trials[2]]


def test_a_lerobot_environment_that_lacks_lerobot_is_told():
    policy = open_policy(f"lerobot:{sys.executable}?checkpoint=nowhere")
    with pytest.raises(UserError, match="No module named 'lerobot'"):
        ask(policy, [Trial(TASK, "official/0", 0)])
    with pytest.raises(UserError, match="does not start"):
        ask(open_policy("lerobot:/no/python?checkpoint=x"), [Trial(TASK, "official/0", 0)])


@pytest.mark.skipif(
    "LEROBOT_PYTHON" not in os.environ, reason="LEROBOT_PYTHON names no environment with lerobot"
)
def test_a_lerobot_checkpoint_acts_as_in_lerobot_itself_and_plays_a_whole_trial(tmp_path):
    python, rng = os.environ["LEROBOT_PYTHON"], np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 2, 256, 256, 3), np.uint8)
    images[:, 0] //= 8  # the first camera is in the dark
    upright, state = images[0, :, ::-1, ::-1], [0, 0, 0, np.pi, 0, 0, 0, 0]  # of `Seen`
    folder = tmp_path / "pretrained_model"
    folder.mkdir()
    np.savez(folder / "seen.npz", images=upright, state=np.array(state, np.float32))
    script = Path(__file__).with_name("lerobot_checkpoint.py")
    subprocess.run([python, "-I", str(script), str(folder)], check=True, timeout=300)
    name = f"lerobot:{python}?checkpoint={folder}&replan=10"
    policy, trial = open_policy(name), Trial(TASK, "official/0", 0)
    policy.begin(trial, "do it")
    actions = policy.act(Seen(1), images, [trial])
    assert not policy.failures
    expected = np.load(folder / "expected.npy").clip(-1, 1)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(actions[0], expected, atol=1e-5)
    swapped = policy.act(Seen(1), images[:, ::-1], [trial])
    assert np.abs(swapped - actions).max() > 1e-3  # each camera is where it belongs
    policy.server.kill()
    table = run(name, plan([TASK], 1), tmp_path / "records", workers=1)
    assert table["status"].tolist() == ["failure"]  # random weights: a whole trial, no error
