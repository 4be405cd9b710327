"""Another version of lb_xdp takes over: what means the same goes on, what is lost is said."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from lb_xdp.datapath.layout import layout
from tests.support.gateway import Gateway, config_for, reweighted
from tests.support.lab import Lab
from tests.support.scenes import Scene, build_network, undisturbed, wait_until
from tests.support.servers import Nginx

_PINS = Path("/sys/fs/bpf/lb-xdp/gw1")
_HERE = Path(__file__).parents[2]
_OLD = 1
_PRESENT = layout().version

Program = tuple[str, ...]


def old_version(folder: Path, *changes: tuple[str, str]) -> Program:
    """Return the command of a copy of the sources with another layout, and other headers."""
    for name in ("lb_xdp", "bpf"):
        shutil.copytree(_HERE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    header = folder / "bpf/lb_types.h"
    text = header.read_text()
    for before, after in ((f"LB_LAYOUT {_PRESENT}", f"LB_LAYOUT {_OLD}"), *changes):
        assert re.search(rf"\b{before}\b", text)
        text = re.sub(rf"\b{before}\b", after, text)
    header.write_text(text)
    return ("env", f"PYTHONPATH={folder}", sys.executable, "-P", "-m", "lb_xdp")


def old_scene(lab: Lab, program: Program) -> Scene:
    """Build a scene in which an old version forwards."""
    network = build_network(lab, "nat", 2)
    config = config_for(network)
    gateway = Gateway(network, config)
    web = {host.name: Nginx(lab, host) for host in network.backends}
    gateway.start(program=program)
    gateway.wait_until_up("b1", "b2", "b3")
    assert gateway.status()["datapath"]["layout"] == _OLD
    return Scene(network, gateway, config, web)


def test_a_layout_that_means_the_same_is_gone_on_with(lab: Lab) -> None:
    """Slots that settle, flow records and counters go on, and nobody notices; old pins go."""
    scene = old_scene(lab, old_version(lab.directory / "old"))
    with undisturbed(scene):
        # From now on flows of the moved slots live by their records.
        scene.gateway.take(reweighted(scene.config, 300))
        before, programs = scene.counters(), scene.program_ids()
        scene.gateway.kill()
        scene.gateway.start()
    after = scene.counters()
    assert scene.gateway.status()["datapath"]["layout"] == _PRESENT
    assert all(after[name][0] > packets for name, (packets, _) in before.items())
    assert all(after[name][1] >= flows for name, (_, flows) in before.items())
    assert not set(scene.program_ids().values()) & set(programs.values())
    wait_until(lambda: not (_PINS / f"v{_OLD}").exists(), "the old pins are removed")
    assert "lost: nothing" in scene.gateway.log()


def test_a_record_that_means_something_else_is_lost_only_when_told(lab: Lab) -> None:
    """The start names what would be lost and changes nothing; --replace loses just that."""
    old = old_version(lab.directory / "old", ("LB_FLOW_CLOSED 16", "LB_FLOW_CLOSED 32"))
    scene = old_scene(lab, old)
    with undisturbed(scene):
        before, programs = scene.counters(), scene.program_ids()
        scene.gateway.terminate()
        refused = scene.gateway.command("run", "-c", str(scene.gateway.config_path), check=False)
        assert refused.returncode == 1
        lost = "would be lost: flow records, flow records of fullnat, records of direct nat flows."
        assert lost in " ".join(refused.stderr.split())
        assert "--replace" in refused.stderr
        assert scene.program_ids() == programs
        assert not (_PINS / f"v{_PRESENT}").exists()
        scene.gateway.start("--replace")
    after = scene.counters()
    assert all(after[name][0] > packets for name, (packets, _) in before.items())
    assert not (_PINS / f"v{_OLD}").exists()


def test_back_to_the_older_version(lab: Lab) -> None:
    """A new version that is taken back leaves by the same way, with nothing lost."""
    old = old_version(lab.directory / "old")
    scene = old_scene(lab, old)
    with undisturbed(scene):
        scene.gateway.terminate()
        scene.gateway.start()
        before = scene.counters()
        scene.gateway.kill()
        scene.gateway.start(program=old)
    assert scene.gateway.status()["datapath"]["layout"] == _OLD
    assert all(scene.counters()[name][0] > packets for name, (packets, _) in before.items())
    wait_until(lambda: not (_PINS / f"v{_PRESENT}").exists(), "the new pins are removed")


def test_the_new_versions_plan_says_what_would_be_lost(lab: Lab) -> None:
    """Asked of the old daemon by the new command, before anything is stopped."""
    old = old_version(lab.directory / "old", ("LB_FLOW_CLOSED 16", "LB_FLOW_CLOSED 32"))
    scene = old_scene(lab, old)
    said = " ".join(scene.gateway.command("plan").stdout.split())
    assert "would lose flow records, flow records of fullnat" in said
    assert "nothing would change" in said
