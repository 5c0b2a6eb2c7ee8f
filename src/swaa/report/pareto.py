"""The Pareto front: what nothing cheaper reaches."""

from collections.abc import Mapping


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names whose gain no point of the same or a lower cost reaches, cheapest first.

    Args:
        points: (cost, gain) by name; of equal points the first counts.
    """
    front: list[str] = []
    for name, (_, gain) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if not front or gain > points[front[-1]][1]:
            front.append(name)
    return front
