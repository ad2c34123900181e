"""Configuration baselines: what can be said of an architecture without building it.

Any proxy that reads a model has to beat these, or it has only found a slow way to count.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def configuration_baselines(
    *,
    parameters: npt.ArrayLike,
    body_parameters: npt.ArrayLike,
    depth: npt.ArrayLike,
    width: npt.ArrayLike,
) -> dict[str, Array]:
    """Scores of the five baselines, by name.

    Args:
        parameters: [n] all parameters.
        body_parameters: [n] parameters of the blocks and the final norm.
        depth: [n] number of blocks.
        width: [n] width of the hidden state.

    Returns:
        name -> [n] float64, in the order in which they are reported.
    """
    depths = np.asarray(depth, np.float64)
    widths = np.asarray(width, np.float64)
    return {
        "parameters": np.asarray(parameters, np.float64),
        "body-parameters": np.asarray(body_parameters, np.float64),
        "depth": depths,
        "width": widths,
        "depth²×width": depths**2 * widths,
    }
