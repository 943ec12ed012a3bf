"""The trellis: which codes may follow which, down the rows of a column (Ungerboeck 1982).

Codes are whole multiples of a fine step. In a state that allows the even ones, and in one that
allows 0 and the odd ones, the k-th allowed code is called symbol k; the parity of the symbol leads
to the next state. Like dequantize.py this file is part of the shipped loader and uses nothing but
numpy.
"""

import numpy as np

# Eight states; even states allow even codes. After an even symbol, and after an odd one.
NEXT_STATE = np.array([[0, 2], [5, 7], [1, 3], [4, 6], [2, 0], [7, 5], [3, 1], [6, 4]])


def code_states(codes: np.ndarray, starts: np.ndarray | int = 0) -> np.ndarray:
    """int64 [rows + 1, columns]: the state before each of the codes [rows, columns], and after all.

    The codes lie on the trellis if `codes_of` their symbols in these states are the same again.
    """
    states = np.zeros((len(codes) + 1, codes.shape[1]), dtype=np.int64)
    states[0] = starts
    for row, before in enumerate(states[:-1]):
        states[row + 1] = NEXT_STATE[before, symbols_of(codes[row], before) & 1]
    return states


def on_trellis(codes: np.ndarray) -> bool:
    """Whether codes [rows, columns] are a path from state 0."""
    states = code_states(codes)[:-1]
    return np.array_equal(codes_of(symbols_of(codes, states), states), codes)


def symbols_of(codes: np.ndarray, states: np.ndarray) -> np.ndarray:
    """int64: the symbols of codes in these states, of the same shape."""
    wide = codes.astype(np.int64)
    symbols: np.ndarray = (wide + np.sign(wide) * (states & 1)) // 2
    return symbols


def codes_of(symbols: np.ndarray, states: np.ndarray) -> np.ndarray:
    """int64: the codes of symbols in these states, of the same shape."""
    codes: np.ndarray = 2 * symbols - np.sign(symbols) * (states & 1)
    return codes
