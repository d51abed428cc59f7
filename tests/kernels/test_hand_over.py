# SPDX-License-Identifier: Apache-2.0
"""How the warps of the CUDA lattice hand edges over (kernels/cuda/sweep.cuh), in all interleavings.

The steps of `Sweep::strip` are read from the source and carried out by a few warps that take turns
in every possible way: those of one block, strip after strip, or those of a block for each strip. A
memory cell holds whose value it is. Each warp says what it must find. Stores and asynchronous
copies become visible at once, or as late as what orders them allows.
"""

import itertools
import re

import pytest

from support.runs import ROOT, sweep

SWEEP = ROOT / "kernels" / "cuda" / "sweep.cuh"
pytestmark = pytest.mark.skipif(not SWEEP.is_file(), reason="not in a source tree")

STEPS = {  # in a turn in which a warp has a tile, and at the turn's end
    r"if \(j \+ 1 < tiles\) fetch\(mine, column, base > 0, end, missing, (.*?), (.*?)\);": "fetch",
    r"copy_commit\(\);": "commit",
    r"copy_wait<(\d+)>\(\);": "wait",
    r"if \(receives\) receive\(mine, coming, end, missing, j, (.*?), (.*?)\), look_for": "receive",
    r"__syncwarp\(\);": "order the warp",
    r"whole<kStore>\(": "work",
    r"if \(more && warp \+ 1 == active\) pass_on\(mine, first, n, (.*?)\);": "pass on",
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
        self.edge_slot = only(r"&memory\[warp \+ 1\]\.common\[(.*?)\]\[0\]\.edge\n", source)
        receiving, passing = (
            source[source.index(f"void {name}(") :].split("\n  }\n")[0]
            for name in ("receive", "pass_on")
        )
        self.waits = "wait_until([&] { return has_stamp(coming.e, stamp); }" in receiving
        self.passing = ["order the warp"] * ("__syncwarp();" in passing) + ["pass on"]


def value(expression, **names):
    return eval(expression, {"kWarp": 1}, names)


class Wrong(Exception):
    pass


class Machine:
    """A state is a tuple: what each warp is about to do, and the memory. `together`: strips have a
    block each, else one for all. `late`: whether stores and copies become visible late."""

    def __init__(self, protocol, active, tiles, together, late_stores, late_copies):
        self.p, self.active, self.tiles = protocol, active, tiles  # warps with a pair, by strip
        self.together, self.late_stores, self.late_copies = together, late_stores, late_copies
        strips = list(enumerate(active))
        blocks = [[strip] for strip in strips] if together else [strips]
        self.programs, self.blocks = [], []  # of each warp
        for block, of_block in enumerate(blocks):
            for warp in range(of_block[0][1]):
                self.programs.append(self.program(block, warp, of_block))
                self.blocks.append(block)

    def program(self, block, warp, strips):
        """All that a warp does, in its order, as (what, arguments)."""
        steps = []
        for strip, active in strips:
            if warp >= active:
                continue
            here = block, warp
            if warp == 0 and strip == 0:
                steps += [("no edge", here, slot) for slot in range(self.p.slots)]
            steps.append(("fetch", here, strip, *(value(x) for x in self.p.first)))
            steps.append(("commit",))
            slot = 0
            for turn in range(value(self.p.turns, tiles=self.tiles, active=active)):
                j = value(self.p.tile, turn=turn, warp=warp)
                if 0 <= j < self.tiles:
                    for step, arguments in self.p.steps:
                        if step == "fetch" and j + 1 < self.tiles:
                            to = (value(x, j=j, slot=slot) for x in arguments)
                            steps.append(("fetch", here, strip, *to))
                        elif step == "receive" and self.together and warp == 0 and strip > 0:
                            at, sender = arguments
                            to = ("edge", *here, value(at, slot=slot))
                            steps.append(("receive", to, value(sender, number=strip), j))
                        elif step == "work":
                            steps += self.work(here, strip, active, j, slot)
                        elif step == "pass on" and self.passes_on(strip, warp, active):
                            assert arguments == ("number",)
                            steps += [(x, block, strip, j) for x in self.p.passing]
                        elif step == "flip":
                            slot = 1 - slot
                        elif step in ("commit", "wait", "order the warp"):
                            steps.append((step, *map(int, arguments)))
                if active == 1:
                    steps.append(("order the warp",))
                elif any(step == "meet" for step, _ in self.p.steps):
                    alpha, beta = next(a for step, a in self.p.steps if step == "meet")
                    assert alpha == beta
                    meeting = value(alpha, active=active, warps=self.active[0])
                    steps.append(("meet", block, meeting))
        return steps

    def passes_on(self, strip, warp, active):
        return self.together and strip + 1 < len(self.active) and warp + 1 == active

    def work(self, here, strip, active, j, slot):
        block, warp = here
        left = ("none",) if warp == 0 and strip == 0 else ("edge", strip - (warp == 0), j)
        reads = [
            ("read", ("label", *here, slot), ("label", strip, j)),
            ("read", ("edge", *here, slot), left),
        ]
        steps = list(reads)
        if warp + 1 < active:
            to = ("edge", block, warp + 1, value(self.p.edge_slot, slot=slot))
            steps.append(("store", to, ("edge", strip, j)))
        elif strip + 1 < len(self.active):
            to = ("outgoing", block) if self.together else ("global", j)
            steps.append(("store", to, ("edge", strip, j)))
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
        if what == "receive":  # waits for a value, which it stores
            cell, sender, j = arguments
            seen = memory.get(("global", j))
            if seen != ("edge", sender, j) and self.p.waits:
                return None
            what, arguments = "store", [cell, seen]
        if what == "pass on":  # by other lanes than the one that stored; seen by all at once
            block, strip, j = arguments
            seen = memory.get(("outgoing", block))
            if seen != ("edge", strip, j):
                raise Wrong(f"warp {warp} passes on {seen}")
            memory[("global", j)] = seen
        elif what == "read":
            cell, expected = arguments
            seen = dict(stores).get(cell, memory.get(cell))
            if seen != expected:
                raise Wrong(f"warp {warp} finds {seen} in {cell}, not {expected}")
        elif what in ("store", "no edge"):
            if what == "no edge":
                here, slot = arguments
                arguments = ("edge", *here, slot), ("none",)
            cell, stored = arguments
            if self.late_stores:
                stores = (*stores, (cell, stored))
            else:
                memory[cell] = stored
        elif what == "fetch":
            here, strip, j, slot = arguments
            if not 0 <= slot < self.p.slots:
                raise Wrong(f"there is no slot {slot}")
            new = [(("label", *here, slot), None, ("label", strip, j))]
            if here[1] == 0 and strip > 0 and not self.together:
                new.append((("edge", *here, slot), ("global", j), None))
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
            for cell, stored in stores:  # what the warp keeps to itself
                if cell[0] == "outgoing":
                    memory[cell] = stored
            if what == "meet":
                arrived = (*arrived, warp)
        warps = (*warps[:warp], (step + 1, stores, copies, due), *warps[warp + 1 :])
        if what == "meet":
            block, expected = arguments
            here = [w for w in arrived if self.blocks[w] == block]
            if len(here) == expected:
                for w in here:
                    step, stores, copies, due = warps[w]
                    memory.update(stores)
                    warps = (*warps[:w], (step, (), copies, due), *warps[w + 1 :])
                arrived = tuple(w for w in arrived if w not in here)
        return warps, tuple(sorted(memory.items())), tuple(sorted(arrived))


def land(copies, memory, stores):
    """What is left of the warp's own stores: a copy overwrites what it stored there before."""
    for to, source, copied in copies:
        memory[to] = copied if source is None else dict(stores).get(source, memory.get(source))
    places = [to for to, *_ in copies]
    return tuple(store for store in stores if store[0] not in places)


def explore(source, active=(3, 3), tiles=4, together=False):
    """How many states there are. Wrong, if a warp finds in any of them what it must not."""
    protocol, total = Protocol(source), 0
    for late in itertools.product([False, True], repeat=2):
        machine = Machine(protocol, active, tiles, together, *late)
        seen, waiting = {machine.start()}, [machine.start()]
        while waiting:
            state = waiting.pop()
            following = [machine.after(state, w) for w in range(len(machine.programs))]
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


@pytest.mark.parametrize("tiles", sweep([1, 2, 3], [2]))
@pytest.mark.parametrize("active", [(2, 2), (2, 1), (1, 1, 1), (1, 2), (1, 1, 1, 1)], ids=str)
def test_strips_that_sweep_together_hand_over_in_all_interleavings(active, tiles):
    assert explore(SWEEP.read_text(), active, tiles, together=True) > 20


def test_the_model_carries_out_what_the_source_says():
    protocol = Protocol(SWEEP.read_text())
    assert [step for step, _ in protocol.steps] == [
        "fetch", "commit", "receive", "wait", "order the warp", "work", "pass on", "flip", "meet",
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
        "common[slot][0].edge\n", "common[1 - slot][0].edge\n", "in .'edge'",
    ),
    "the last turns are missing": ("turn < tiles + active - 1", "turn < tiles", "in .'edge'"),
    "one slot": ("kSlots = 2", "kSlots = 1", "there is no slot 1"),
    "slots are not exchanged": ("        slot = 1 - slot;\n", "", "in .'label'"),
}  # fmt: skip
BUGS_TOGETHER = {  # of strips that sweep together
    "a strip takes what is there": (
        "return has_stamp(coming.e, stamp);", "return true;", "finds None in .'edge'",
    ),
    "a strip takes its own edge": ("slot, number - 1)", "slot, number)", "no warp can go on"),
    "a strip takes what was left for the strip before": (
        "slot, number - 1)", "slot, number - 2)", "in .'edge'|no warp can go on",
    ),
    "lanes pass on what another has not left": (
        "    __syncwarp();\n    if (lane >= n) return;\n    const Value edge",
        "    if (lane >= n) return;\n    const Value edge",
        "passes on",
    ),
    "the next tile's edge comes to where this one is": (
        "missing, j, slot, number - 1)", "missing, j, 1 - slot, number - 1)", "in .'edge'",
    ),
    "warps do not meet": (
        "        barrier<1>(active * kWarp);\n      else\n        barrier<2>(active * kWarp);",
        "        __syncwarp();",
        "in .'edge'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("bugs", "bug", "shape"),
    [
        *((BUGS, bug, {"active": (3, 2)}) for bug in BUGS),
        *(
            (BUGS_TOGETHER, bug, {"active": (2, 2, 1), "tiles": 2, "together": True})
            for bug in BUGS_TOGETHER
        ),
    ],
    ids=[*BUGS, *(f"together, {bug}" for bug in BUGS_TOGETHER)],
)
def test_planted_bugs_are_found(bugs, bug, shape):
    right, wrong, found = bugs[bug]
    source = SWEEP.read_text()
    assert right in source
    with pytest.raises(Wrong, match=found):
        explore(source.replace(right, wrong), **shape)
