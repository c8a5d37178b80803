"""Array types of labels and of indices into a split."""

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.intp]
