# SPDX-License-Identifier: Apache-2.0
"""How the warps of the CUDA lattice hand over what they read, in all interleavings (strip.cuh,
feed.cuh and sweep.cuh of kernels/cuda).

The steps of `Sweep::strip` and of `Feed` are read from the source and carried out by a few warps
that take turns in every possible way: those of one block, strip after strip, or those of a block
for each strip; fed by warps of their own, or by themselves. A memory cell holds whose value it is.
Each warp says what it must find. Stores and asynchronous copies become visible at once, or as late
as what orders them allows. Of turns that differ only in the order of steps that touch no common
cell, one is taken: all others come to the same states.
"""

import functools
import itertools
import re

import pytest

from support.runs import ROOT, sweep

CUDA = ROOT / "kernels" / "cuda"
FILES = [CUDA / name for name in ("strip.cuh", "feed.cuh", "sweep.cuh")]
pytestmark = pytest.mark.skipif(not FILES[0].is_file(), reason="not in a source tree")

STEPS = {  # of the bodies of Feed's functions
    r"if \(warp == 0 && base == 0\)\s+for .*?\s+store\(.*?, Value::none\(\)\);": "no edge",
    r"j < (\w+); \+\+j\) \{\s+if \(j < tiles\) fetch\(\);\s+copy_commit\(\);": "first tiles",
    r"if \((turn .*?) && copied < this->end\) fetch\(\);.*?copy_commit\(\);": "fetch",
    r"if \(receives\) (?:look_for\(0\), )?receive\((.*?)\), look_for": "receive",
    r"if \(passes_on(?: && (.*?))?\) pass_on\((.*?)\);": "pass on",
    r"copy_wait<(.*?)>\(\);": "wait",
    r"\n    wait\(\);": "call wait",
    r"this->meet_before_next_strip\(base, active\);": "meet before next",
}


def source():
    return "\n".join(file.read_text() for file in FILES)


def only(pattern, text):
    (found,) = re.findall(pattern, text, re.DOTALL)
    return found


def body(name, text):
    """Of a function of Feed."""
    line, rest = text.split(f"CTC_DEVICE void {name}(")[1].split("\n", 1)
    return line if line.endswith("}") else "\n" + rest.split("\n  }\n")[0]


def steps_of(text):
    found = [
        (match.start(), step, match.groups())
        for pattern, step in STEPS.items()
        for match in re.finditer(pattern, text, re.DOTALL)
    ]
    return [(step, arguments) for _, step, arguments in sorted(found)]


class Protocol:
    """What the source says: expressions over the names that it uses, and the steps of a turn."""

    def __init__(self, source):
        of_feed = source[source.index("struct Feed :") : source.index("struct Sweep :")]
        of_sweep = source[source.index("struct Sweep :") :].split(" private:")[0]
        self.ahead = only(r"kAhead = (.*?);", source)
        self.slots = only(r"kSlots = (.*?);", source)
        self.slot_of = only(r"int slot_of\(int32_t j\) \{ return (.*?); \}", source)
        self.turns = only(r"int32_t turns\(int active\) const \{ return (.*?); \}", source)
        self.meeting = only(r"const int threads = \((.*?)\) \* kWarp;", source)
        names = "begin", "start", "wait"
        self.feed = {name: steps_of(body(name, of_feed)) for name in names}
        strip = of_feed[of_feed.index("void strip(") :].split("\n  }\n")[0]
        self.feed["end"] = steps_of(strip.split("\n    }\n")[1])
        self.first_slot = only(r"copied = 0, slot = (.*?),", of_feed)
        self.next_slots = re.findall(r"slot = (slot [^;]*);", of_feed + of_sweep)
        assert "labels.copy((slot * kTile + d) *" in of_feed
        assert "common.copy(slot * kTile * 2, blank);" in of_feed
        self.receive_slot = only(r"common\[([^\]]*)\]\[lane_index\(\)\]\.edge, Value\{", of_feed)
        self.pass_slot = only(r"outgoing\[([^\]]*)\]\[lane_index\(\)\]\.edge\);", of_feed)
        self.sender = only(r"const int32_t stamp = stamp_of\((.*?)\);", of_feed)
        self.waits = "wait_until([&] { return has_stamp(coming.e, stamp); }" in of_feed
        loop = of_feed[of_feed.index("for (int32_t turn") :].split("\n    }\n")[0]
        self.feeder = re.findall(r"(start|wait|meet)\(", loop)
        self.waits_before, self.waits_after = re.findall(r"take_turns\((.*?)\);", of_sweep)
        turn = only(r"const auto take_turn = (.*?)\n    \};", of_sweep)
        self.sweeper = re.findall(r"(feed\.start|work|feed\.wait|meet)\(", turn)
        self.sweeper_meets = "this->meet_before_next_strip(base, active);" in of_sweep
        self.meets = only(r"if \((\w+) && !kTogether && more\(base\)\) meet\(active\);", source)
        self.passes_on = only(r"passes_on = Base::(\w+) && this->more", of_feed)


def value(expression, **names):
    """Of a C++ expression."""
    choice = re.fullmatch(r"(.*?) \? (.*?) : (.*)", expression)
    if choice:
        return value(choice[2] if value(choice[1], **names) else choice[3], **names)
    python = expression.replace("&&", "and").replace("false", "False").replace("tiles()", "tiles")
    return eval(python, {}, names)


class Wrong(Exception):
    pass


class Machine:
    """A state is a tuple: what each warp is about to do, and the memory. `together`: strips have a
    block each, else one for all. `late`: whether stores and copies become visible late."""

    def __init__(self, protocol, active, tiles, together, fed, late_stores, late_copies):
        self.p, self.active, self.tiles = protocol, active, tiles  # warps with a pair, by strip
        self.together, self.late_stores, self.late_copies = together, late_stores, late_copies
        self.names = {"kFed": fed, "tiles": tiles}
        self.names["kAhead"] = value(protocol.ahead, **self.names)
        self.names["kSlots"] = value(protocol.slots, **self.names)
        self.names["slot_of"] = lambda j: value(protocol.slot_of, j=j, **self.names)
        strips = list(enumerate(active))
        blocks = [[strip] for strip in strips] if together else [strips]
        self.programs, self.blocks = [], []  # of each warp
        self.fed = {}  # of a warp that is being fed: its next tile, and the slot for that
        for block, of_block in enumerate(blocks):
            roles = [self.sweeper, self.feeder] if fed else [self.sweeper]
            for role, warp in itertools.product(roles, range(of_block[0][1])):
                steps = [role(block, warp, *strip) for strip in of_block if warp < strip[1]]
                self.programs.append([step for of_strip in steps for step in of_strip])
                self.blocks.append(block)
        self.reach = [self.reaches(warp) for warp in range(len(self.programs))]

    def value(self, expression, **names):
        return value(expression, **self.names, **names)

    def more(self, strip):
        return strip + 1 < len(self.active)

    def passes_on(self, strip, warp, active):
        return self.value(self.p.passes_on) and self.more(strip) and warp + 1 == active

    def meet(self, block, active):
        return ("meet", block, self.value(self.p.meeting, active=active))

    def feeding(self, name, here, strip, active, **names):
        """The steps of a function of Feed."""
        block, warp = here
        slots, steps = self.names["kSlots"], []

        def fetch():
            j, slot = self.fed[here]
            if not 0 <= slot < slots:
                raise Wrong(f"there is no slot {slot}")
            self.fed[here] = j + 1, self.value(self.p.next_slots[0], slot=slot)
            return ("fetch", here, strip, j, slot)

        if name == "begin":
            self.fed[here] = 0, self.value(self.p.first_slot)
        for step, arguments in self.p.feed[name]:
            if step == "no edge" and warp == 0 and strip == 0:
                steps += [("store", ("edge", *here, slot), ("none",)) for slot in range(slots)]
            elif step == "first tiles":
                for j in range(self.value(arguments[0])):
                    steps += [fetch()] if j < self.tiles else []
                    steps.append(("commit",))
            elif step == "fetch":
                if self.value(arguments[0], warp=warp, **names) and self.fed[here][0] < self.tiles:
                    steps.append(fetch())
                steps.append(("commit",))
            elif step == "receive" and self.together and warp == 0 and strip > 0:
                j = self.value(arguments[0], **names)
                if j < self.tiles:
                    to = ("edge", *here, self.value(self.p.receive_slot, j=j))
                    steps.append(("receive", to, self.value(self.p.sender, number=strip), j))
            elif step == "pass on" and self.passes_on(strip, warp, active):
                if arguments[0] is None or self.value(arguments[0], warp=warp, **names):
                    j = self.value(arguments[1], warp=warp, **names)
                    slot = self.value(self.p.pass_slot, j=j)
                    steps.append(("pass on", ("outgoing", block, slot), strip, j))
            elif step == "wait":
                steps.append(("wait", self.value(arguments[0])))
            elif step == "call wait":
                steps += self.feeding("wait", here, strip, active)
            elif step == "meet before next":
                steps += self.meet_before_next(block, strip, active)
        return steps

    def meet_before_next(self, block, strip, active):
        meets = self.value(self.p.meets) and not self.together and self.more(strip)
        return [self.meet(block, active)] if meets else []

    def feeder(self, block, warp, strip, active):
        of = (block, warp), strip, active
        steps = [*self.feeding("begin", *of), self.meet(block, active)]
        for turn in range(self.value(self.p.turns, active=active)):
            for step in self.p.feeder:
                if step == "meet":
                    steps.append(self.meet(block, active))
                else:
                    steps += self.feeding(step, *of, turn=turn)
        return [*steps, *self.feeding("end", *of)]

    def sweeper(self, block, warp, strip, active):
        of, fed = ((block, warp), strip, active), self.names["kFed"]
        steps = [] if fed else self.feeding("begin", *of)
        steps.append(self.meet(block, active))
        slot, turns = 0, [None] * self.value(self.p.waits_before, warp=warp)
        turns += [*range(self.tiles)]
        turns += [None] * self.value(self.p.waits_after, warp=warp, active=active)
        for turn, j in enumerate(turns):
            for step in self.p.sweeper:
                if step == "meet":
                    steps.append(self.meet(block, active))
                elif step.startswith("feed.") and not fed:
                    steps += self.feeding(step.removeprefix("feed."), *of, turn=turn)
                elif step == "work" and j is not None:
                    steps += self.work(*of, j, slot)
                    slot = self.value(self.p.next_slots[1], slot=slot)
        return [
            *steps,
            *(self.meet_before_next(block, strip, active) if self.p.sweeper_meets else []),
        ]

    def work(self, here, strip, active, j, slot):
        block, warp = here
        left = ("none",) if warp == 0 and strip == 0 else ("edge", strip - (warp == 0), j)
        reads = [
            ("read", ("label", *here, slot), ("label", strip, j)),
            ("read", ("edge", *here, slot), left),
        ]
        steps = list(reads)
        if warp + 1 < active:
            steps.append(("store", ("edge", block, warp + 1, slot), ("edge", strip, j)))
        elif self.more(strip):
            to = ("outgoing", block, slot) if self.names["kFed"] else ("global", j)
            steps.append(("store", to, ("edge", strip, j)))
        return [*steps, *reads]  # of the tile's later frames

    def start(self):
        warps = tuple((0, (), (), 0) for _ in self.programs)  # step, stores, copies, groups due
        return warps, frozenset(), ()  # memory: (cell, value); who has arrived

    def finished(self, state):
        return all(step == len(p) for (step, *_), p in zip(state[0], self.programs, strict=True))

    def cells_of(self, step):
        """Those that a step reads, and those that it writes."""
        what, *arguments = step
        if what == "read":
            return {arguments[0]}, set()
        if what == "store":
            return set(), {arguments[0]}
        if what == "receive":
            return {("global", arguments[2])}, {arguments[0]}
        if what == "pass on":
            return {arguments[0]}, {("global", arguments[2])}
        if what == "fetch":
            here, _, j, slot = arguments
            return {("global", j)}, {("label", *here, slot), ("edge", *here, slot)}
        return set(), set()

    def reaches(self, warp):
        """Of each step of a warp: the cells that the warp may read and write from there to where
        it has to meet all warps of its block, or to its end, which matters to other blocks."""
        of_block = self.blocks.count(self.blocks[warp])
        near = far = (frozenset(), frozenset())
        found = [(near, far)]
        for step in reversed(self.programs[warp]):
            if step[0] == "meet" and step[2] >= of_block:
                near = (frozenset(), frozenset())
            cells = self.cells_of(step)
            near, far = (tuple(a | b for a, b in zip(to, cells, strict=True)) for to in (near, far))
            found.append((near, far))
        return found[::-1]

    def may_touch(self, state, warp, block):
        """What a warp may read and write before it meets a warp of `block`."""
        step, stores, copies, _ = state[0][warp]
        reads, writes = self.reach[warp][step][block != self.blocks[warp]]
        return reads | sources_of(copies), writes | places_of(copies) | places_of(stores)

    def commutes(self, state, warp):
        """Whether no other warp can do anything before it meets this one that touches what this
        one's next step does: then it makes no difference who is first."""
        step, _, copies, _ = state[0][warp]
        if step == len(self.programs[warp]) or warp in state[2]:
            return False
        reads, writes = self.cells_of(self.programs[warp][step])
        if self.programs[warp][step][0] == "meet":  # copies may land, stores may become visible
            reads, writes = reads | sources_of(copies), writes | places_of(copies)
            writes = writes.union(*(places_of(state[0][w][1]) for w in (warp, *state[2])))
        for other in range(len(self.programs)):
            if other != warp:
                their_reads, their_writes = self.may_touch(state, other, self.blocks[warp])
                if writes & their_reads or writes & their_writes or reads & their_writes:
                    return False
        return True

    def following(self, state):
        """The states after one step of one warp: of each, unless that of one alone is enough."""
        for warp in reversed(range(len(self.programs))):
            if self.commutes(state, warp):
                after = self.after(state, warp)
                if after is not None:
                    return [after]
        every = (self.after(state, warp) for warp in range(len(self.programs)))
        return [after for after in every if after is not None]

    def after(self, state, warp):
        """The state after the warp's next step, and those that no other warp sees, or None if it
        waits."""
        state = self.step(state, warp)
        while state is not None and self.sees_nobody(state, warp):
            state = self.step(state, warp)
        return state

    def sees_nobody(self, state, warp):
        step = state[0][warp][0]
        if step == len(self.programs[warp]) or warp in state[2]:
            return False
        hidden = {"commit", "wait"}
        hidden |= {"store"} if self.late_stores else set()
        hidden |= {"fetch"} if self.late_copies else set()
        return self.programs[warp][step][0] in hidden

    def step(self, state, warp):
        warps, cells, arrived = state
        step, stores, copies, due = warps[warp]
        if step == len(self.programs[warp]) or warp in arrived:
            return None
        what, *arguments = self.programs[warp][step]
        memory = contents(cells)
        if what == "commit":
            copies = (*copies, "end of a group")
        elif what == "wait":
            due = max(due, copies.count("end of a group") - arguments[0])
        elif what == "read":
            cell, expected = arguments
            seen = dict(stores).get(cell, memory.get(cell))
            if seen != expected:
                raise Wrong(f"warp {warp} finds {seen} in {cell}, not {expected}")
        elif what == "receive" and self.p.waits:
            if memory.get(("global", arguments[2])) != ("edge", *arguments[1:]):
                return None
        if what in ("commit", "wait", "read"):
            warps = (*warps[:warp], (step + 1, stores, copies, due), *warps[warp + 1 :])
            return warps, cells, arrived
        memory = dict(memory)
        if what == "receive":  # stores the value that came
            cell, _, j = arguments
            what, arguments = "store", [cell, memory.get(("global", j))]
        if what == "pass on":  # by other lanes than the one that stored
            cell, strip, j = arguments
            seen = memory.get(cell)
            if seen != ("edge", strip, j):
                raise Wrong(f"warp {warp} passes on {seen}")
            if self.together:  # seen by all at once
                memory[("global", j)] = seen
            else:
                what, arguments = "store", [("global", j), seen]
        if what == "store":
            cell, stored = arguments
            if self.late_stores:
                stores = (*stores, (cell, stored))
            else:
                memory[cell] = stored
        elif what == "fetch":
            here, strip, j, slot = arguments
            new = [(("label", *here, slot), None, ("label", strip, j))]
            if here[1] == 0 and strip > 0 and not self.together:
                new.append((("edge", *here, slot), ("global", j), None))
            if self.late_copies:
                copies = (*copies, *new)
            else:
                stores = land(new, memory, stores)
        elif what == "meet":
            while due > 0:
                if copies[0] == "end of a group":
                    due -= 1
                else:
                    stores = land([copies[0]], memory, stores)
                copies = copies[1:]
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
        return warps, frozenset(memory.items()), tuple(sorted(arrived))


@functools.lru_cache(maxsize=1)  # all warps take their next step from one state
def contents(cells):
    return dict(cells)


def places_of(copies):
    """Of copies or stores that are not visible yet."""
    return {copy[0] for copy in copies if copy != "end of a group"}


def sources_of(copies):
    return {copy[1] for copy in copies if copy != "end of a group" and copy[1] is not None}


def land(copies, memory, stores):
    """What is left of the warp's own stores: a copy overwrites what it stored there before."""
    for to, source, copied in copies:
        memory[to] = copied if source is None else dict(stores).get(source, memory.get(source))
    places = [to for to, *_ in copies]
    return tuple(store for store in stores if store[0] not in places)


def explore(source, active=(3, 3), tiles=4, together=False, fed=True):
    """How many states there are. Wrong, if a warp finds in any of them what it must not."""
    protocol, total = Protocol(source), 0
    for late in itertools.product([False, True], repeat=2):
        machine = Machine(protocol, active, tiles, together, fed, *late)
        seen, waiting = {machine.start()}, [machine.start()]
        while waiting:
            state = waiting.pop()
            following = machine.following(state)
            if not following and not machine.finished(state):
                raise Wrong("no warp can go on")
            new = [x for x in dict.fromkeys(following) if x not in seen]
            seen.update(new)
            waiting += new
        total += len(seen)
    return total


# Warps that sweep, in each strip; tiles; whether others feed them.
SHAPES = list(
    itertools.product(
        [(3, 3), (3, 2), (3, 1), (2, 2), (2, 1), (1, 1), (1,), (3,)],
        [1, 2, 3, 4, 7],
        [True, False],
    )
)


@pytest.mark.parametrize(("active", "tiles", "fed"), SHAPES, ids=str)
def test_every_warp_finds_what_it_must_in_all_interleavings(active, tiles, fed):
    assert explore(source(), active, tiles, fed=fed) > 20


@pytest.mark.parametrize("tiles", sweep([1, 2, 3], [1, 2]))
@pytest.mark.parametrize(
    "active", [(2, 2), (2, 1), (1, 1, 1), (1, 2), (1, 1, 1, 1), (3, 2), (2, 2, 2)], ids=str
)
def test_strips_that_sweep_together_hand_over_in_all_interleavings(active, tiles):
    assert explore(source(), active, tiles, together=True) > 20


def test_the_model_carries_out_what_the_source_says():
    protocol = Protocol(source())
    assert {name: [step for step, _ in steps] for name, steps in protocol.feed.items()} == {
        "begin": ["no edge", "first tiles", "receive", "call wait"],
        "start": ["fetch", "pass on", "receive"],
        "wait": ["wait"],
        "end": ["pass on", "meet before next"],
    }
    assert protocol.feeder == ["start", "wait", "meet"]
    assert protocol.sweeper == ["feed.start", "work", "feed.wait", "meet"]
    assert (protocol.waits, protocol.sweeper_meets) == (True, True)
    assert explore(source(), tiles=7) > 2000


FED, ALONE = {"active": (2, 1), "tiles": 4}, {"active": (2, 1), "tiles": 4, "fed": False}
TOGETHER = {"active": (2, 1), "tiles": 3, "together": True}
BUGS = {  # how the source is changed; of whom; what is found
    "copies are not waited for": (
        "copy_wait<kAhead - 1>();",
        ";",
        (FED, ALONE),
        "None in .'label'",
    ),
    "the last copies are not waited for": (
        "copy_wait<kAhead - 1>();",
        "copy_wait<kAhead>();",
        (FED, ALONE),
        "None in .'label'",
    ),
    "warps do not meet": (
        "      this->meet(active);\n      ++turn;",
        "      ++turn;",
        (FED, ALONE, TOGETHER),
        "in .'(edge|label)'|no warp can go on",
    ),
    "warps do not wait for those that feed them": (
        "kFed ? 2 * active : active",
        "kFed ? active : active",
        (FED,),
        "in .'(label|edge)'|passes on|no warp can",
    ),
    "too few are waited for": (
        "kFed ? 2 * active : active",
        "kFed ? 2 * active : active - 1",
        (ALONE,),
        "in .'edge'|no warp can",
    ),
    "too many are waited for": (
        "kFed ? 2 * active : active",
        "2 * active + 1",
        (FED, ALONE),
        "no warp can go on",
    ),
    "no warp is a tile behind": (
        "take_turns(warp);",
        "take_turns(0);",
        (FED, ALONE),
        "in .'(edge|label)'|no warp can go on",
    ),
    "the last turns are missing": (
        "take_turns(active - 1 - warp);",
        "take_turns(0);",
        (FED, ALONE),
        "no warp can go on",
    ),
    "who feeds stops early": (
        "return tiles() + active - 1;",
        "return tiles();",
        (FED,),
        "no warp can go on|passes on|in .'edge'",
    ),
    "tiles are copied to where others are worked on": (
        "copied = 0, slot = 0,",
        "copied = 0, slot = 1,",
        (FED, ALONE),
        "in .'label'",
    ),
    "one slot less": (
        "kSlots = kAhead + 1;",
        "kSlots = kAhead;",
        (FED, ALONE),
        "in .'(label|edge)'",
    ),
    "a warp stays in its slot": (
        "      slot = slot + 1 < kSlots ? slot + 1 : 0;\n    };",
        "      slot = slot + 0;\n    };",
        (FED, ALONE),
        "in .'label'",
    ),
    "a tile is copied a turn early": (
        "turn >= warp && copied",
        "turn + 1 >= warp && copied",
        (FED, ALONE),
        "in .'label'",
    ),
    "edges are passed on before they are there": (
        "turn > warp) pass_on(turn - 1 - warp);",
        "turn >= warp) pass_on(turn - warp);",
        (FED, TOGETHER),
        "passes on",
    ),
    "the last edges are not passed on": (
        "    if (passes_on) pass_on(tiles - 1);\n",
        "",
        (FED, TOGETHER),
        "in .'edge'|no warp can",
    ),
    "the next strip begins before the edges are there": (
        "if (kFed && !kTogether && more(base))",
        "if (false && !kTogether && more(base))",
        (FED,),
        "in .'edge'",
    ),
    "a strip takes what is there": (
        "return has_stamp(coming.e, stamp);",
        "return true;",
        (TOGETHER,),
        "in .'edge'",
    ),
    "a strip takes its own edge": (
        "stamp_of(number - 1)",
        "stamp_of(number)",
        (TOGETHER,),
        "no warp can go on",
    ),
    "a strip takes what was left for the strip before": (
        "stamp_of(number - 1)",
        "stamp_of(number - 2)",
        (TOGETHER,),
        "no warp can go on",
    ),
    "the next tile's edge comes to where this one is": (
        "common[slot_of(j)][lane_index()].edge, Value",
        "common[slot_of(j + 2)][lane_index()].edge, Value",
        (TOGETHER,),
        "in .'edge'",
    ),
    "edges are looked for a turn late": (
        "receive(turn + 1), look_for(turn + 2)",
        "receive(turn), look_for(turn + 1)",
        (TOGETHER,),
        "in .'edge'",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_found(bug):
    right, wrong, shapes, found = BUGS[bug]
    assert source().count(right) == 1
    for shape in shapes:
        with pytest.raises(Wrong, match=found):
            explore(source().replace(right, wrong), **shape)
