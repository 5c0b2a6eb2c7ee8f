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


def non_dominated(points: Mapping[str, tuple[float, ...]]) -> list[str]:
    """Return the names of the points that no other one equals or undercuts in all of several costs, in their order.

    Args:
        points: costs by name, all tuples of one length; of equal points the first counts.
    """
    names = list(points)

    def beaten(name: str, place: int) -> bool:
        mine = points[name]
        return any(
            all(a <= b for a, b in zip(points[other], mine, strict=True)) and (points[other] != mine or index < place)
            for index, other in enumerate(names)
            if other != name
        )

    return [name for place, name in enumerate(names) if not beaten(name, place)]
