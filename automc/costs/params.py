"""Parameters: entries of every parameter tensor of the shrunk module, tied ones once, zeros included."""

from automc.costs.table import CostTable, FloatArray, Shapes, total


class _Params:
    name = "params"

    def layers(self, table: CostTable, shapes: Shapes) -> FloatArray:
        return shapes.weights * table.owns_weight + shapes.out * table.has_bias

    def rest(self, table: CostTable, shapes: Shapes) -> FloatArray:
        others: FloatArray = shapes.norm @ table.norm_parameters + shapes.parameters.sum(axis=1)
        return others + table.constant_parameters - shapes.dropped

    def dense(self, table: CostTable) -> float:
        return float(total(self, table, table.shapes(table.dense))[0])


PARAMS = _Params()
