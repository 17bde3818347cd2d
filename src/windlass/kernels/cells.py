"""Cells of text without Python strings: where they stand in a buffer, what each one is, and the hash of its value.

Equal values have equal hashes however they are spelt and wherever they stand: `1`, `1.0` and `+1e0` are one number,
`2024-05-01` and `2024-05-01 00:00` one moment, `TRUE` and `true` one truth, surrounding space does not count, and the
null words are one null. A number is the nearest float64, as everywhere; an integer that no float64 holds is its
digits. A leading zero makes a code (`007`), and a code is text.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass.kernels.compiled import compiled, inlined
from windlass.kernels.hashing import fold, hash_bytes, mix64

NULL, INTEGER, NUMBER, TRUTH, DATE, TIMESTAMP, CODE, TEXT, UNFINISHED = range(9)
"""What a cell is. CODE is text that begins with a digit, a sign or a point; UNFINISHED is a number whose digits do
not fit a machine word: the caller converts it, and calls `number_hash`."""

NULL_HASH = np.uint64(0x6E756C6C6E756C6C)
_NUMBER_SEED = np.uint64(0x6E756D6265725F31)
_TIME_SEED = np.uint64(0x6D6F6D656E745F31)
_TRUTH_SEED = np.uint64(0x74727574685F5F31)
_TEXT_SEED = np.uint64(0x746578745F5F5F31)
MOST_EXACT = 1 << 53
"""The largest integer up to which every one is a float64."""
_POWERS = 10.0 ** np.arange(23)
_NEWLINE, _RETURN, _QUOTE, _POINT, _PLUS, _MINUS, _ZERO = 10, 13, 34, 46, 43, 45, 48
_DAYS_BEFORE = np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365], np.int64)
_MICROSECONDS = 1_000_000


@compiled
def split_cells(data: Any, start: Any, delimiter: Any, starts: Any, ends: Any, lines: Any, report: Any) -> Any:
    """Find the cells of delimited text (the quoting rules of Python's `csv`), one row after the other.

    Quoted cells are unquoted in place: `data` changes. Rows without any content are passed over; short rows are
    filled with empty cells, and what is past the last column is left out.

    Args:
        data: uint8 array.
        start: Where the first row begins.
        delimiter: One byte.
        starts, ends: int64[columns, room for rows], written.
        lines: int64[room for rows], where each row begins, written.
        report: int64[3], written: rows passed over, rows with another number of cells, 1 when a quote runs away.

    Returns:
        Rows found.
    """
    columns, room = starts.shape
    row, at, size = 0, start, data.size
    while at < size and row < room:
        column, filled, extra, line = 0, False, False, at
        more = True
        while more:
            more = False
            first = at
            last = at
            if at < size and data[at] == _QUOTE:
                at += 1
                first = last = at
                inside = True
                while at < size:
                    byte = data[at]
                    if inside and byte == _QUOTE:
                        if at + 1 < size and data[at + 1] == _QUOTE:
                            at += 1
                        else:
                            inside = False
                            at += 1
                            continue
                    elif not inside and (byte == delimiter or byte == _NEWLINE or byte == _RETURN):
                        break
                    data[last] = data[at]
                    last += 1
                    at += 1
                if inside:
                    report[2] = 1
                    return row
            else:
                while at < size:
                    byte = data[at]
                    if byte == delimiter or byte == _NEWLINE or byte == _RETURN:
                        break
                    at += 1
                last = at
            if column < columns:
                starts[column, row] = first
                ends[column, row] = last
                filled |= last > first
            elif last > first:
                extra = True
                filled = True
            column += 1
            if at < size and data[at] == delimiter:
                at += 1
                more = True
        if at < size:
            at += 2 if data[at] == _RETURN and at + 1 < size and data[at + 1] == _NEWLINE else 1
        if not filled:
            if column > 1:
                report[0] += 1
            continue
        if column < columns or extra:
            report[1] += 1
        for missing in range(column, columns):
            starts[missing, row] = ends[missing, row] = 0
        lines[row] = line
        row += 1
    return row


@compiled
def classify_cells(data: Any, starts: Any, ends: Any, kinds: Any, values: Any, hashes: Any) -> Any:
    """Say of each cell what it is, and hash its value.

    Args:
        data: uint8 array, UTF-8.
        starts, ends: int64[n], the cells; the space around them is cut off in place.
        kinds: uint8[n], written.
        values: float64[n], written: the number, or microseconds since 1970 of a date or time; nan for all else.
        hashes: uint64[n], written.

    Returns:
        How many cells are `UNFINISHED`.
    """
    unfinished = 0
    for index in range(starts.size):
        first, last = starts[index], ends[index]
        first, last = _stripped(data, first, last)
        starts[index], ends[index] = first, last
        values[index] = np.nan
        length = last - first
        if _is_null(data, first, length):
            kinds[index], hashes[index] = NULL, NULL_HASH
            continue
        byte = data[first]
        if _is_digit(byte) or byte == _POINT or byte == _PLUS or byte == _MINUS:
            kind, value = _number(data, first, last)
            if kind == CODE and length >= 10 and data[first + 4] == _MINUS:
                kind, moment = _moment(data, first, last)
                if kind != CODE:
                    kinds[index], values[index] = kind, float(moment)
                    hashes[index] = mix64(np.uint64(moment) ^ _TIME_SEED)
                    continue
            kinds[index] = kind
            if kind == UNFINISHED:
                unfinished += 1
            elif kind != CODE:
                values[index], hashes[index] = value, number_hash(value)
                continue
        else:
            truth = _truth(data, first, length)
            if truth >= 0:
                kinds[index], hashes[index] = TRUTH, mix64(_TRUTH_SEED + np.uint64(truth))
                continue
            kinds[index] = TEXT
        hashes[index] = fold(hash_bytes(data, first, last), _TEXT_SEED)
    return unfinished


@compiled
def classify_integers(numbers: Any, ends: Any, kinds: Any, values: Any, hashes: Any) -> None:
    """`classify_cells` of a column that came as integers (int64[n], at most `MOST_EXACT`), null where `ends` is 0."""
    for index in range(numbers.size):
        if ends[index] == 0:
            kinds[index], values[index], hashes[index] = NULL, np.nan, NULL_HASH
        else:
            value = float(numbers[index])
            kinds[index], values[index], hashes[index] = INTEGER, value, number_hash(value)


@compiled
def count_digits(numbers: Any, valid: Any, lengths: Any) -> None:
    """How long integers (int64[n], at most `MOST_EXACT`) are as text: into int64[n], 0 where `valid` is False."""
    for index in range(numbers.size):
        rest = numbers[index]
        length = 1 if rest >= 0 else 2
        rest = abs(rest)
        while rest >= 10:
            rest //= 10
            length += 1
        lengths[index] = length if valid[index] else 0


@compiled
def extreme_cells(data: Any, starts: Any, ends: Any, rows: Any) -> Any:
    """The least and the greatest of some cells (int64[>= 1] row numbers) in the order of their bytes."""
    least, greatest = rows[0], rows[0]
    for row in rows:
        if _before(data, starts[row], ends[row], starts[least], ends[least]):
            least = row
        if _before(data, starts[greatest], ends[greatest], starts[row], ends[row]):
            greatest = row
    return least, greatest


@inlined
def _before(data: Any, a: Any, a_end: Any, b: Any, b_end: Any) -> Any:
    while a < a_end and b < b_end:
        if data[a] != data[b]:
            return data[a] < data[b]
        a += 1
        b += 1
    return a == a_end and b < b_end


@compiled
def number_hash(value: Any) -> Any:
    """The hash of a number (float64); minus zero is zero."""
    box = np.empty(1, np.float64)
    box[0] = value + 0.0
    return mix64(box.view(np.uint64)[0] ^ _NUMBER_SEED)


@compiled
def exact_text_hash(data: Any, start: Any, end: Any) -> Any:
    """The hash of an integer that no float64 holds: of its digits, a plus sign left out."""
    return fold(hash_bytes(data, start + (1 if data[start] == _PLUS else 0), end), _NUMBER_SEED)


@inlined
def _is_digit(byte: Any) -> Any:
    return 48 <= byte <= 57


@compiled
def _stripped(data: Any, first: Any, last: Any) -> Any:
    """The span without white space around it, by the rules of `str.strip`."""
    while first < last:
        width = _space_from(data, first, last)
        if width == 0:
            break
        first += width
    while first < last:
        width = 0
        for back in range(1, min(3, last - first) + 1):
            if _space_from(data, last - back, last) == back:
                width = back
                break
        if width == 0:
            break
        last -= width
    return first, last


@inlined
def _space_from(data: Any, at: Any, end: Any) -> Any:
    """Bytes of the white space character that begins at `at`; 0 when there is none."""
    byte = data[at]
    if byte == 32 or 9 <= byte <= 13 or 28 <= byte <= 31:
        return 1
    if byte < 0xC2:
        return 0
    if byte == 0xC2 and at + 1 < end and (data[at + 1] == 0xA0 or data[at + 1] == 0x85):
        return 2
    if at + 2 < end:
        second, third = data[at + 1], data[at + 2]
        if byte == 0xE2 and second == 0x80 and (third <= 0x8A or third == 0xA8 or third == 0xA9 or third == 0xAF):
            return 3
        if byte == 0xE2 and second == 0x81 and third == 0x9F:
            return 3
        if byte == 0xE3 and second == 0x80 and third == 0x80:
            return 3
        if byte == 0xE1 and second == 0x9A and third == 0x80:
            return 3
    return 0


@inlined
def _is_null(data: Any, at: Any, length: Any) -> Any:
    """`""`, `-`, `NA`, `N/A`, `NaN`, `nan`, `null`, `NULL`, `None`."""
    if length == 0:
        return True
    first = data[at]
    if length == 1:
        return first == 45
    if first != 78 and first != 110:
        return False
    second = data[at + 1]
    if length == 2:
        return first == 78 and second == 65
    third = data[at + 2]
    if length == 3:
        if first == 78:
            return (second == 47 and third == 65) or (second == 97 and third == 78)
        return second == 97 and third == 110
    if length == 4:
        fourth = data[at + 3]
        if first == 110:
            return second == 117 and third == 108 and fourth == 108
        return (second == 85 and third == 76 and fourth == 76) or (second == 111 and third == 110 and fourth == 101)
    return False


@inlined
def _truth(data: Any, at: Any, length: Any) -> Any:
    """1 for `true`, 0 for `false`, in any mixture of cases; -1 for all else."""
    if length == 4:
        if (data[at] | 32) == 116 and (data[at + 1] | 32) == 114 and (data[at + 2] | 32) == 117:
            return 1 if (data[at + 3] | 32) == 101 else -1
    elif length == 5:
        if (data[at] | 32) == 102 and (data[at + 1] | 32) == 97 and (data[at + 2] | 32) == 108:
            return 0 if (data[at + 3] | 32) == 115 and (data[at + 4] | 32) == 101 else -1
    return -1


@compiled
def _number(data: Any, first: Any, last: Any) -> Any:
    """(INTEGER, NUMBER, UNFINISHED or CODE, value) of a stripped cell.

    The grammar is that of `lake.readers.columns`: no leading zero, at most 18 digits before the point.
    """
    at = first
    negative = data[at] == _MINUS
    if negative or data[at] == _PLUS:
        at += 1
    digits_from = at
    mantissa, digits, scale = np.uint64(0), 0, 0
    while at < last and _is_digit(data[at]):
        mantissa = mantissa * np.uint64(10) + np.uint64(data[at] - _ZERO)
        at += 1
    whole = at - digits_from
    if whole > 18 or (whole > 1 and data[digits_from] == _ZERO):
        return CODE, np.nan
    digits = whole
    kind = INTEGER
    if at < last and data[at] == _POINT:
        kind = NUMBER
        at += 1
        from_here = at
        while at < last and _is_digit(data[at]):
            if digits < 19:
                mantissa = mantissa * np.uint64(10) + np.uint64(data[at] - _ZERO)
                scale -= 1
                digits += 1 if mantissa > np.uint64(0) else 0
            elif data[at] != _ZERO:
                digits = 20
            at += 1
        if whole == 0 and at == from_here:
            return CODE, np.nan
    elif whole == 0:
        return CODE, np.nan
    if at < last and (data[at] | 32) == 101:
        kind = NUMBER
        at += 1
        down = at < last and data[at] == _MINUS
        if at < last and (data[at] == _MINUS or data[at] == _PLUS):
            at += 1
        from_here, exponent = at, 0
        while at < last and _is_digit(data[at]):
            exponent = exponent * 10 + (data[at] - _ZERO)
            at += 1
        if at == from_here or at - from_here > 3:
            return CODE, np.nan
        scale += -exponent if down else exponent
    if at != last:
        return CODE, np.nan
    if mantissa == np.uint64(0):
        return kind, 0.0
    while scale < 0 and digits <= 19 and mantissa % np.uint64(10) == np.uint64(0):
        mantissa //= np.uint64(10)
        scale += 1
    if digits > 19 or mantissa > np.uint64(MOST_EXACT) or scale > 22 or scale < -22:
        return UNFINISHED, np.nan
    value = float(mantissa)
    value = value / _POWERS[-scale] if scale < 0 else value * _POWERS[scale]
    return kind, -value if negative else value


@inlined
def _two(data: Any, at: Any) -> Any:
    """The number that two digits make; -1 when they are none."""
    if _is_digit(data[at]) and _is_digit(data[at + 1]):
        return np.int64(data[at] - _ZERO) * 10 + np.int64(data[at + 1] - _ZERO)
    return np.int64(-1)


@compiled
def _moment(data: Any, first: Any, last: Any) -> Any:
    """(DATE, TIMESTAMP or CODE, microseconds since 1970) of `2024-05-01`, `2024-05-01 12:30[:59[.123456]]`."""
    century, years = _two(data, first), _two(data, first + 2)
    month, day = _two(data, first + 5), _two(data, first + 8)
    if century < 0 or years < 0 or data[first + 7] != _MINUS or month < 1 or month > 12 or day < 1:
        return CODE, np.int64(0)
    year = century * 100 + years
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    longest = _DAYS_BEFORE[month] - _DAYS_BEFORE[month - 1] + (1 if leap and month == 2 else 0)
    if year < 1 or day > longest:
        return CODE, np.int64(0)
    past = year - 1
    days = past * 365 + past // 4 - past // 100 + past // 400 - 719162
    days += _DAYS_BEFORE[month - 1] + (1 if leap and month > 2 else 0) + day - 1
    midnight = days * 86400 * _MICROSECONDS
    at = first + 10
    if at == last:
        return DATE, midnight
    if last - at < 6 or (data[at] != 32 and data[at] != 84) or data[at + 3] != 58:
        return CODE, np.int64(0)
    hour, minute, second, fraction = _two(data, at + 1), _two(data, at + 4), np.int64(0), np.int64(0)
    at += 6
    if at < last:
        if last - at < 3 or data[at] != 58:
            return CODE, np.int64(0)
        second = _two(data, at + 1)
        at += 3
        if at < last:
            if data[at] != _POINT or last - at < 2 or last - at > 7:
                return CODE, np.int64(0)
            scale = np.int64(100_000)
            for place in range(at + 1, last):
                if not _is_digit(data[place]):
                    return CODE, np.int64(0)
                fraction += (data[place] - _ZERO) * scale
                scale //= 10
    if hour < 0 or hour > 23 or minute < 0 or minute > 59 or second < 0 or second > 59:
        return CODE, np.int64(0)
    return TIMESTAMP, midnight + (hour * 3600 + minute * 60 + second) * _MICROSECONDS + fraction
