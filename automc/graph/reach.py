"""What a graph's output depends on."""

from torch import fx


def needed(graph: fx.Graph) -> set[fx.Node]:
    """The output and every node it is made of."""
    found: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found
