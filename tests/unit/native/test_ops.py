"""Single ops against float64, for every variant that this CPU runs."""

import numpy as np
import pytest

from servewright_runtime import _native, native
from support.native_model import QUANTISED, TYPES, decode, encode, quantise

EPS = 2.0**-24  # of a float32 rounding

VARIANTS = native.variants()


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def random_floats(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, cols)).astype(np.float32)


def test_print_the_variants_that_are_tested(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nnative kernels tested here: {', '.join(VARIANTS)}")
    assert "base" in VARIANTS


@pytest.mark.parametrize("tensor_type", TYPES)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 50])
def test_packed_rows_unpack_to_what_they_stand_for(
    variant: str, tensor_type: str, rows: int
) -> None:
    raw = encode(random_floats(rows, 96), tensor_type)
    got = _native.dequantise(variant, tensor_type, raw, 96)
    # d * q + m of Q4_1 rounds twice in float32, everything else at most once.
    np.testing.assert_allclose(got, decode(raw, tensor_type), rtol=2 * EPS, atol=1e-6)


@pytest.mark.parametrize("bits", [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0x7BFF, 0xFC00])
def test_scales_of_every_kind_of_half_survive(variant: str, bits: int) -> None:
    raw = np.zeros((3, 34), np.uint8)
    raw[:, :2] = np.frombuffer(np.uint16(bits).tobytes(), np.uint8)
    raw[:, 2:] = 3
    scale = float(np.uint16(bits).view(np.float16))
    got = _native.dequantise(variant, "Q8_0", raw, 32)
    np.testing.assert_array_equal(got, np.full((3, 32), 3 * scale, np.float32))
    x = np.zeros((1, 32), np.float32)
    x[0, :2] = 127.0, 64.0  # quantised exactly
    product = _native.project(variant, "Q8_0", raw, x)
    np.testing.assert_array_equal(product, np.full((1, 3), np.float32(scale) * 573))


def assert_no_outlier(outliers: np.ndarray, columns: np.ndarray) -> None:
    assert (outliers == 0).all()
    assert (columns == -1).all()


@pytest.mark.parametrize("tokens", [1, 3, 4, 7, 8, 9, 17])
def test_quantised_activations_are_the_nearest(variant: str, tokens: int) -> None:
    x = random_floats(tokens, 96)
    x[0, 32:64] = 0.0
    q, scales, minus_8_sums, *rest = _native.quantise(variant, x, None, 0.0)
    assert_no_outlier(*rest)
    blocks = x.reshape(tokens, 3, 32).astype(np.float64)
    np.testing.assert_allclose(scales, np.abs(blocks).max(axis=2) / 127, rtol=EPS)
    back = q.reshape(tokens, 3, 32) * scales[:, :, None].astype(np.float64)
    # Half a step, and the roundings of 127 / max and of the product.
    assert (np.abs(back - blocks) <= scales[:, :, None] * (0.5 + 127 * 3 * EPS)).all()
    sums = q.reshape(tokens, 3, 32).sum(axis=2, dtype=np.int64)
    np.testing.assert_array_equal(minus_8_sums, -8 * sums)


def test_norm_scales_to_unit_rms(variant: str) -> None:
    x, weight = random_floats(5, 160), 1 + 0.1 * random_floats(1, 160, 1)[0]
    q, scales, *_ = _native.quantise(variant, x, weight, 1e-5)
    wide = x.astype(np.float64)
    wanted = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5) * weight
    got = q.reshape(5, 5, 32) * scales[:, :, None].astype(np.float64)
    # Half a step of the int8, and 160 roundings of the mean square at most.
    bound = scales[:, :, None] * (0.5 + 127 * 160 * EPS)
    assert (np.abs(got - wanted.reshape(5, 5, 32)) <= bound).all()


def test_a_block_with_a_number_that_is_none_gets_such_a_scale(variant: str) -> None:
    x = random_floats(3, 64)
    x[0, 40], x[1, 3], x[2, 5] = np.nan, np.inf, -np.inf
    _, scales, _, *rest = _native.quantise(variant, x, None, 0.0)
    assert_no_outlier(*rest)
    np.testing.assert_array_equal(
        np.isfinite(scales), [[True, False], [False, True], [False, True]]
    )


@pytest.mark.parametrize("tokens", [2, 5, 6, 7, 8, 12, 19])
@pytest.mark.parametrize(
    "rare", [0.0, 1e-45, 1e-38, 1e-36, 3e38, np.inf, np.nan], ids=lambda rare: f"{rare:g}"
)
def test_a_row_quantises_to_the_same_bits_in_any_company(
    variant: str, tokens: int, rare: float
) -> None:
    x = random_floats(tokens, 96)
    x[tokens // 2, 32:64] = 0.0
    x[tokens // 2, 40:42] = rare, rare / 2
    x[::3, 70] = 30.0  # an outlier beside usual numbers
    x[-1, :32] = 0.0
    x[-1, 7] = rare  # and alone
    together = _native.quantise(variant, x, None, 0.0)
    for token in range(tokens):
        alone = _native.quantise(variant, x[token : token + 1], None, 0.0)
        for part in range(len(together)):
            assert alone[part][0].tobytes() == together[part][token].tobytes()


@pytest.mark.parametrize("tensor_type", TYPES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 7, 8, 11, 16])
@pytest.mark.parametrize(("rows", "cols"), [(1, 32), (17, 96), (50, 160)])
def test_projection_is_right_within_its_rounding(
    variant: str, tensor_type: str, tokens: int, rows: int, cols: int
) -> None:
    raw = encode(random_floats(rows, cols), tensor_type)
    x = random_floats(tokens, cols, 1)
    got = _native.project(variant, tensor_type, raw, x)
    weights, inputs = decode(raw, tensor_type), x.astype(np.float64)
    if tensor_type in QUANTISED:
        inputs = as_quantised(variant, x)
    # Roundings a term of the chain: product of scales, product, sum; Q4_1's min once more.
    terms = (cols // 32 * 4 if tensor_type in QUANTISED else 2 * cols) + 2
    magnitudes = np.abs(inputs) @ np.abs(weights).T
    if tensor_type == "Q4_1":  # d * q and m can be large and cancel
        magnitudes *= 3
    assert (np.abs(got - inputs @ weights.T) <= terms * EPS * magnitudes + 1e-30).all()


def as_quantised(variant: str, x: np.ndarray) -> np.ndarray:
    """The numbers that a projection takes for x: [tokens, cols] float64."""
    q, scales, _, outliers, columns = _native.quantise(variant, x, None, 0.0)
    blocks = q.reshape(*scales.shape, 32) * scales[:, :, None].astype(np.float64)
    kept = np.arange(32) == columns[:, :, None]
    assert (blocks[kept] == 0).all()
    return np.where(kept, outliers[:, :, None], blocks).reshape(x.shape)


@pytest.mark.parametrize("column", [0, 5, 15, 16, 31])
def test_a_value_above_four_times_the_others_stays_as_it_is(variant: str, column: int) -> None:
    x = random_floats(11, 320, 2)
    largest = np.abs(np.delete(x.reshape(11, 10, 32), column, axis=2)).max(axis=2)
    x[:, column::32] = np.where(np.arange(10) % 2, -3.99, 4.01) * largest
    x[3, column] = x[3, (column + 7) % 32] = 90.0  # two of a size are none
    _, scales, _, outliers, columns = _native.quantise(variant, x, None, 0.0)
    wanted = np.where(np.arange(10) % 2, 0, x[:, column::32])
    wanted[3, 0] = 0
    np.testing.assert_array_equal(outliers, wanted)
    np.testing.assert_array_equal(columns, np.where(wanted != 0, column, -1))
    np.testing.assert_allclose(scales[wanted != 0], largest[wanted != 0] / 127, rtol=EPS)
    assert np.abs(as_quantised(variant, x) - x).max() <= 90 / 254 * (1 + 127 * 3 * EPS)


@pytest.mark.parametrize("tensor_type", QUANTISED)
@pytest.mark.parametrize("tokens", [1, 2, 5, 8, 11, 16, 150])
@pytest.mark.parametrize("blocks", [1, 7, 8, 9, 66])
def test_outliers_meet_their_weights_in_float(
    variant: str, tensor_type: str, tokens: int, blocks: int
) -> None:
    rng = np.random.default_rng(tokens)
    raw = encode(random_floats(33, blocks * 32), tensor_type)
    outliers = np.zeros((tokens, blocks, 32), np.float32)
    columns = rng.integers(0, 32, (tokens, blocks, 1))
    values = rng.standard_normal((tokens, blocks, 1)) * (rng.random((tokens, blocks, 1)) < 0.3)
    np.put_along_axis(outliers, columns, values.astype(np.float32), axis=2)
    x = outliers.reshape(tokens, -1)  # nothing but outliers: no rounding to int8
    got = _native.project(variant, tensor_type, raw, x)
    weights = decode(raw, tensor_type)
    magnitudes = np.abs(x).astype(np.float64) @ np.abs(weights).T
    if tensor_type == "Q4_1":  # d * q and m can be large and cancel
        magnitudes *= 3
    assert (np.abs(got - x @ weights.T) <= (blocks + 3) * EPS * magnitudes).all()


@pytest.mark.parametrize("tensor_type", QUANTISED)
def test_integer_part_of_a_projection_is_exact_at_its_extremes(
    variant: str, tensor_type: str
) -> None:
    rows, cols = 19, 64
    width = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}[tensor_type]
    header = width - (32 if tensor_type == "Q8_0" else 16)
    for filling in (0x00, 0xFF, 0x80, 0x7F, 0xF0):
        blocks = np.full((rows, cols // 32, width), filling, np.uint8)
        blocks[:, :, :header] = np.tile(
            np.frombuffer(np.float16(1).tobytes(), np.uint8), header // 2
        )
        raw = blocks.reshape(rows, -1)
        for sign in (1, -1):
            x = np.full((20, cols), sign * 127.0, np.float32)
            x[:, 1::3] *= -1
            wanted = x.astype(np.float64) @ decode(raw, tensor_type).T
            got = _native.project(variant, tensor_type, raw, x)
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("tensor_type", TYPES)
@pytest.mark.parametrize("cols", [128, 2112])
def test_a_token_projects_to_the_same_bits_in_any_company(
    variant: str, tensor_type: str, cols: int
) -> None:
    raw = encode(random_floats(33, cols), tensor_type)
    x = random_floats(40, cols, 1)
    x[::3, 40] = 30.0  # some of the tokens have outliers
    x[::5, -40] = 30.0
    together = _native.project(variant, tensor_type, raw, x)
    for count in (1, 2, 3, 5, 8, 9, 14, 16):
        for first in range(0, 40 - count, 6):
            part = _native.project(variant, tensor_type, raw, x[first : first + count])
            np.testing.assert_array_equal(part, together[first : first + count])


@pytest.mark.parametrize("other", ["avx512", "amx"])
@pytest.mark.parametrize("tensor_type", TYPES)
def test_all_back_ends_of_16_lanes_give_the_same_bits(tensor_type: str, other: str) -> None:
    if other not in VARIANTS:
        pytest.skip(f"this CPU lacks {other}")
    raw, x = encode(random_floats(50, 160), tensor_type), random_floats(29, 160, 1)
    np.testing.assert_array_equal(
        _native.project(other, tensor_type, raw, x),
        _native.project("avx2x16", tensor_type, raw, x),
    )


@pytest.mark.parametrize("count", [1, 7, 8, 16, 33, 1000])
def test_scan_finds_the_first_highest(variant: str, count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(20):
        x = rng.integers(-3, 4, count).astype(np.float32)  # many equals
        assert _native.scan(variant, x) == (float(x.max()), int(x.argmax()), True)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 15, 16, 36])
def test_scan_tells_what_is_not_finite(variant: str, bad: float, at: int) -> None:
    x = np.linspace(-1, 1, 37, dtype=np.float32)
    x[at] = bad
    assert not _native.scan(variant, x)[2]


def test_scan_of_nothing_but_nan_gives_the_first(variant: str) -> None:
    assert _native.scan(variant, np.full(40, np.nan, np.float32))[1:] == (0, False)


@pytest.mark.parametrize("count", [1, 3, 8, 13, 257])
def test_exponentials_in_double(variant: str, count: int) -> None:
    x = (random_floats(1, count) * 40)[0]
    for temperature in (0.1, 1.0, 7.0):
        exact = np.exp((x.astype(np.longdouble) - x.max()) / temperature)
        got = _native.exponentials(variant, x, temperature)
        # exp's own 4e-16, and the rounding of an argument of up to 700.
        np.testing.assert_allclose(
            got, exact.astype(np.float64), rtol=4e-16 + 700 * 2**-53, atol=1e-300
        )


def test_the_reference_quantises_as_the_kernels_do(variant: str) -> None:
    x = random_floats(4, 64)
    x[1:3, 40] = 30.0
    got = as_quantised(variant, x)
    np.testing.assert_allclose(got, quantise(x.astype(np.float64)), rtol=1e-6)
