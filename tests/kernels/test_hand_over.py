# SPDX-License-Identifier: Apache-2.0
"""How the warps of the CUDA lattice hand edges over (kernels/cuda/sweep.cuh), in all interleavings.

The steps of `Sweep::strip` are read from the source and carried out by a few warps that take turns
in every possible way. A memory cell holds whose value it is. Each warp says what it must find.
Stores and asynchronous copies become visible at once, or as late as what orders them allows.
"""

import itertools
import re

import pytest

from support.runs import ROOT

SWEEP = ROOT / "kernels" / "cuda" / "sweep.cuh"
pytestmark = pytest.mark.skipif(not SWEEP.is_file(), reason="not in a source tree")

STEPS = {  # in a turn in which a warp has a tile, and at the turn's end
    r"if \(j \+ 1 < tiles\) fetch\(mine, column, base > 0, end, missing, (.*?), (.*?)\);": "fetch",
    r"copy_commit\(\);": "commit",
    r"copy_wait<(\d+)>\(\);": "wait",
    r"__syncwarp\(\);": "order the warp",
    r"whole<kStore>\(": "work",
    r"slot = 1 - slot;": "flip",
    r"if \(active == 1\)\s+__syncwarp\(\);\s+else if \(\w+ == kAlpha\)\s+barrier<1>\((.*?)\);"
    r"\s+else\s+barrier<2>\((.*?)\);": "meet",
}


def only(pattern, text):
    (found,) = re.findall(pattern, text, re.DOTALL)
    return found


class Protocol:
    """What the source says: expressions over the names that it uses, and the steps of a turn."""

    def __init__(self, source):
        self.slots = int(only(r"kSlots = (\d+);", source))
        strip = source[source.index("void strip(") : source.index(" private:")]
        self.turns = only(r"turn < (.*?); \+\+turn", strip)
        self.tile = only(r"const int32_t j = (.*?);", strip)
        self.first = only(
            r"if \(tiles > 0\) fetch\(mine, column, base > 0, end, missing, (.*?), (.*?)\);", strip
        )
        loop = strip[strip.index("const int32_t j = ") :]
        found = [
            (match.start(), step, match.groups())
            for pattern, step in STEPS.items()
            for match in re.finditer(pattern, loop)
        ]
        end = next((at for at, step, _ in found if step == "meet"), len(loop))
        self.steps = [
            (step, arguments) for at, step, arguments in sorted(found) if at < end or step == "meet"
        ]
        self.edge_slot = only(r"&memory\[warp \+ 1\]\.common\[(.*?)\]\[0\]\.edge : ", source)


def value(expression, **names):
    return eval(expression, {"kWarp": 1}, names)


class Wrong(Exception):
    pass


class Machine:
    """A state is a tuple: what each warp is about to do, and the memory. `late`: whether stores and
    copies become visible late."""

    def __init__(self, protocol, active, tiles, late_stores, late_copies):
        self.p, self.active, self.tiles = protocol, active, tiles  # warps with a pair, by strip
        self.late_stores, self.late_copies = late_stores, late_copies
        self.programs = [self.program(warp) for warp in range(active[0])]

    def program(self, warp):
        """All that a warp does, in its order, as (what, arguments)."""
        steps = []
        for strip, active in enumerate(self.active):
            if warp >= active:
                continue
            if warp == 0 and strip == 0:
                steps += [("no edge", slot) for slot in range(self.p.slots)]
            steps.append(("fetch", strip, *(value(x) for x in self.p.first)))
            steps.append(("commit",))
            slot = 0
            for turn in range(value(self.p.turns, tiles=self.tiles, active=active)):
                j = value(self.p.tile, turn=turn, warp=warp)
                if 0 <= j < self.tiles:
                    for step, arguments in self.p.steps:
                        if step == "fetch" and j + 1 < self.tiles:
                            steps.append(
                                ("fetch", strip, *(value(x, j=j, slot=slot) for x in arguments))
                            )
                        elif step == "work":
                            steps += self.work(strip, warp, active, j, slot)
                        elif step == "flip":
                            slot = 1 - slot
                        elif step in ("commit", "wait", "order the warp"):
                            steps.append((step, *map(int, arguments)))
                if active == 1:
                    steps.append(("order the warp",))
                elif any(step == "meet" for step, _ in self.p.steps):
                    alpha, beta = next(a for step, a in self.p.steps if step == "meet")
                    assert alpha == beta
                    steps.append(("meet", value(alpha, active=active, warps=self.active[0])))
        return steps

    def work(self, strip, warp, active, j, slot):
        left = ("none",) if warp == 0 and strip == 0 else ("edge", strip - (warp == 0), j)
        reads = [
            ("read", ("label", warp, slot), ("label", strip, j)),
            ("read", ("edge", warp, slot), left),
        ]
        steps = list(reads)
        if warp + 1 < active:
            to = ("edge", warp + 1, value(self.p.edge_slot, slot=slot))
            steps.append(("store", to, ("edge", strip, j)))
        elif strip + 1 < len(self.active):
            steps.append(("store", ("global", j), ("edge", strip, j)))
        return [*steps, *reads]  # of the tile's later frames

    def start(self):
        warps = tuple((0, (), (), 0) for _ in self.programs)  # step, stores, copies, groups due
        return warps, (), ()  # memory: sorted (cell, value); who has arrived

    def finished(self, state):
        return all(step == len(p) for (step, *_), p in zip(state[0], self.programs, strict=True))

    def after(self, state, warp):
        """The state after the warp's next step, or None if it waits."""
        warps, memory, arrived = state
        step, stores, copies, due = warps[warp]
        if step == len(self.programs[warp]) or warp in arrived:
            return None
        memory = dict(memory)
        what, *arguments = self.programs[warp][step]
        if what == "read":
            cell, expected = arguments
            seen = dict(stores).get(cell, memory.get(cell))
            if seen != expected:
                raise Wrong(f"warp {warp} finds {seen} in {cell}, not {expected}")
        elif what in ("store", "no edge"):
            cell, stored = (
                (("edge", 0, arguments[0]), ("none",)) if what == "no edge" else arguments
            )
            if self.late_stores:
                stores = (*stores, (cell, stored))
            else:
                memory[cell] = stored
        elif what == "fetch":
            strip, j, slot = arguments
            if not 0 <= slot < self.p.slots:
                raise Wrong(f"there is no slot {slot}")
            new = [(("label", warp, slot), None, ("label", strip, j))]
            if warp == 0 and strip > 0:
                new.append((("edge", 0, slot), ("global", j), None))
            if self.late_copies:
                copies = (*copies, *new)
            else:
                stores = land(new, memory, stores)
        elif what == "commit":
            copies = (*copies, "end of a group")
        elif what == "wait":
            due = max(due, copies.count("end of a group") - arguments[0])
        else:  # what orders the lanes of the warp, at least
            while due > 0:
                if copies[0] == "end of a group":
                    due -= 1
                else:
                    stores = land([copies[0]], memory, stores)
                copies = copies[1:]
            if what == "meet":
                arrived = (*arrived, warp)
        warps = (*warps[:warp], (step + 1, stores, copies, due), *warps[warp + 1 :])
        if what == "meet" and len(arrived) == arguments[0]:
            for w in arrived:
                step, stores, copies, due = warps[w]
                memory.update(stores)
                warps = (*warps[:w], (step, (), copies, due), *warps[w + 1 :])
            arrived = ()
        return warps, tuple(sorted(memory.items())), tuple(sorted(arrived))


def land(copies, memory, stores):
    """What is left of the warp's own stores: a copy overwrites what it stored there before."""
    for to, source, copied in copies:
        memory[to] = copied if source is None else dict(stores).get(source, memory.get(source))
    places = [to for to, *_ in copies]
    return tuple(store for store in stores if store[0] not in places)


def explore(source, active=(3, 3), tiles=4):
    """How many states there are. Wrong, if a warp finds in any of them what it must not."""
    protocol, total = Protocol(source), 0
    for late in itertools.product([False, True], repeat=2):
        machine = Machine(protocol, active, tiles, *late)
        seen, waiting = {machine.start()}, [machine.start()]
        while waiting:
            state = waiting.pop()
            following = [machine.after(state, w) for w in range(active[0])]
            following = [x for x in following if x is not None]
            if not following and not machine.finished(state):
                raise Wrong("no warp can go on")
            new = set(following) - seen
            seen |= new
            waiting += new
        total += len(seen)
    return total


# Warps that sweep, in each strip; tiles.
@pytest.mark.parametrize("tiles", [1, 2, 4])
@pytest.mark.parametrize("active", [(3, 3), (3, 2), (3, 1), (2, 2), (1, 1), (1,), (3,)], ids=str)
def test_every_warp_finds_what_it_must_in_all_interleavings(active, tiles):
    assert explore(SWEEP.read_text(), active, tiles) > 20


def test_the_model_carries_out_what_the_source_says():
    protocol = Protocol(SWEEP.read_text())
    assert [step for step, _ in protocol.steps] == [
        "fetch", "commit", "wait", "order the warp", "work", "flip", "meet",
    ]  # fmt: skip
    assert protocol.slots == 2
    assert explore(SWEEP.read_text()) > 2000


BUGS = {  # what is found of them
    "copies are not waited for": ("copy_wait<1>();", "", "finds None in .'label'"),
    "the last copies are not waited for": (
        "copy_wait<1>();", "copy_wait<2>();", "finds None in .'label'",
    ),
    "lanes read what others copied": (
        "started\n        __syncwarp();", "started", "finds None in .'label'",
    ),
    "warps do not meet": (
        "        barrier<1>(active * kWarp);\n      else\n        barrier<2>(active * kWarp);",
        "        __syncwarp();",
        "in .'edge'",
    ),
    "too few are waited for": ("(active * kWarp)", "((active - 1) * kWarp)", "in .'edge'"),
    "too many are waited for": ("(active * kWarp)", "(warps * kWarp)", "no warp can go on"),
    "no warp is a tile behind": ("int32_t j = turn - warp;", "int32_t j = turn;", "in .'edge'"),
    "the next tile comes to where this one is": (
        "j + 1, 1 - slot)", "j + 1, slot)", "finds .'label', 0, 1. in .'label'",
    ),
    "the edge goes to the other slot": (
        "common[slot][0].edge : ", "common[1 - slot][0].edge : ", "in .'edge'",
    ),
    "the last turns are missing": ("turn < tiles + active - 1", "turn < tiles", "in .'edge'"),
    "one slot": ("kSlots = 2", "kSlots = 1", "there is no slot 1"),
    "slots are not exchanged": ("        slot = 1 - slot;\n", "", "in .'label'"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_found(bug):
    right, wrong, found = BUGS[bug]
    source = SWEEP.read_text()
    assert right in source
    with pytest.raises(Wrong, match=found):
        explore(source.replace(right, wrong), active=(3, 2))
