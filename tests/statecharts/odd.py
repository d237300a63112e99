"""Charts that are hard to draw, and a parser for the drawings."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from statecharts import Branch, Chart, Choice, Leaf, State, Transition

ODD = Chart(
    name="o;dd|chart",
    doc="Names that <b>mean</b> something *elsewhere*.",
    states=(
        State("end", (Leaf('note: "x"', "a | b\nc"), Leaf("a%%b;#", "`code`"))),
        State.simple("state", final=True),
        State("mixed", (Leaf("a  b"), Leaf("a__b", final=True))),
    ),
    initial="a%%b;#",
    flags=("f:1",),
    choices=(Choice("<choice>", (Branch("f:1", "a  b"),), "a__b"),),
    transitions=(
        Transition("end", "go; --> here", "state", when=("f:1",), doc="[link](to)"),
        Transition("end", "go; --> here", "<choice>", unless=("f:1",)),
        Transition("a%%b;#", "e{}", 'note: "x"'),
        Transition('note: "x"', "choose", "<choice>"),
        Transition("end", "end note", None, sets=("f:1",)),
        Transition('note: "x"', "end note", None, clears=("f:1",)),
        Transition("a  b", "é", "state"),
    ),
)


def large(states: int = 5, leaves: int = 6) -> Chart:
    """Return a chart of many leaves, each with several arrows, some with long labels."""
    names = [[f"S{state}L{leaf}" for leaf in range(leaves)] for state in range(states)]
    flat = [name for row in names for name in row]
    transitions = [
        Transition(name, f"event_{step}", flat[(index + step) % len(flat)], sets=(f"FLAG_{step}",))
        for index, name in enumerate(flat)
        for step in (1, 7, 11)
    ]
    transitions += [
        Transition(f"S{state}", "reset_everything_that_was_done_here", flat[0], clears=("FLAG_1", "FLAG_7"))
        for state in range(states)
    ]
    return Chart(
        "large",
        tuple(
            State(f"S{state}", tuple(Leaf(name, f"what {name} means, " * 4) for name in row))
            for state, row in enumerate(names)
        ),
        flat[0],
        tuple(transitions),
        flags=("FLAG_1", "FLAG_7", "FLAG_11"),
    )


def parsed(text: str) -> ET.Element:
    """Parse XML, or raise."""
    return ET.fromstring(text)
